"""How far two atoms of one true expert can lie apart before the density notices: no data, no noise, no router.

The truth is a mixture of Gaussian experts of a scalar input, x uniform on [-2, 2]:

    p(y | x) = sum_i g_i(x) N(y; act(a_i x + b_i), exp(v_i))
    softmax gating:       g_i ~ exp(t_i x + c_i)
    gating by response:   g_i ~ exp(softplus(act(a_i x + b_i)) + c_i)
    gating by share:      g_i ~ softplus(act(a_i x + b_i)) exp(c_i), which without c_i is how a competing layer weighs experts

The fitted mixture has more experts: two or three of its atoms stand for the first true expert, and two of these are held a
distance eps apart. `least_distance` is the least Hellinger distance H(eps) to the truth over all else that is free. Where
H ~ eps^r, a sample of n cannot tell an eps below n^(-1 / 2r): the maximum likelihood estimate of the split parameter
converges no faster.

E experts of the fitted mixture, X nodes of the input, Y nodes of the target, Z free parameters, P = 5 parameters an expert.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor
from torch.func import jacfwd

Gate = Literal["softmax", "response", "share"]
Expert = Literal["linear", "tanh", "relu", "gelu"]
Split = Literal["intercept", "slope", "both", "opposite", "variance", "gate-slope"]

PARAMETERS = ("slope", "intercept", "variance", "gate-slope", "gate-bias")
"""Rows of a table of parameters [P, E]: a, b, v (logarithm of the variance), t, c."""

DIRECTIONS: dict[Split, dict[str, float]] = {
    "intercept": {"intercept": 1.0},
    "slope": {"slope": 1.0},
    "both": {"slope": math.sqrt(0.5), "intercept": math.sqrt(0.5)},
    "opposite": {"slope": math.sqrt(0.5), "intercept": -math.sqrt(0.5)},
    "variance": {"variance": 1.0},
    "gate-slope": {"gate-slope": 1.0},
}
"""Which differences between the two atoms are held, and at how much of eps; all other differences are free."""

ACTIVATIONS: dict[Expert, Callable[[Tensor], Tensor]] = {
    "linear": lambda z: z,
    "tanh": lambda z: 2 * torch.tanh(z),
    "relu": lambda z: 2 * torch.relu(z),
    "gelu": lambda z: 2 * torch.nn.functional.gelu(z),
}
EDGE = 2.0
"""The input is uniform on [-EDGE, EDGE]."""
INPUT_NODES, PANEL_NODES, PANEL = 24, 4, 0.5
"""Gauss-Legendre nodes over the whole input, or in each panel of at most PANEL where experts have kinks."""
TARGET_STEP = 0.2
"""Step of the trapezoidal rule in y: half a standard deviation or less, where it is exact to rounding for Gaussians."""
TARGET_TAIL = 8.0
"""Standard deviations beyond the outermost mean."""
START_SCALES: tuple[Callable[[float], float], ...] = (
    lambda eps: 0.3 * eps,
    lambda eps: eps,
    lambda eps: 0.5 * eps**0.5,
)
"""Standard deviations of the starts around the truth: what is free may have to move as eps, or as its root."""
STARTS_OF_ATOMS = {2: 1, 3: 4}
"""Starts of each scale: three atoms have several arrangements, each a local minimum."""
TOLERANCE, MOST_EVALUATIONS = 1e-12, 300


@dataclass(frozen=True)
class Case:
    """One profile."""

    expert: Expert
    gate: Gate
    bias: bool
    """Whether the gate has a bias c_i an expert."""
    split: Split
    truth: int = 0
    """0: the parameters of `FIRST_TRUTH`; else the seed that draws them."""
    experts: int = 2
    """True experts."""
    atoms: int = 2
    """Fitted experts that stand for the first true one."""
    refined: int = 1
    """How many times the nodes, in x and y."""

    @property
    def name(self) -> str:
        gate = f"{self.gate}-bias" if self.bias else self.gate
        more = [f"experts-{self.experts}"] * (self.experts != 2) + [f"atoms-{self.atoms}"] * (self.atoms != 2)
        return "/".join(
            [self.expert, gate, self.split, f"truth-{self.truth}", *more, *["refined"] * (self.refined != 1)]
        )


FIRST_TRUTH_PE = np.array([[1.5, -1.5], [1.0, -0.5], [math.log(0.25)] * 2, [1.0, 0.0], [0.0, 0.0]])


def draw_truth(seed: int, experts: int) -> tuple[np.ndarray, float]:
    """Parameters [P, experts] of a truth, and the share of the first atom in the expert that is split.

    Kinks of ReLU experts lie within the input, and experts' means lie 1 or more apart on average. The last expert's gate is
    the reference: 0, as softmax is blind to what all gates have in common.
    """
    if seed == 0:
        return FIRST_TRUTH_PE[:, :experts], 0.5
    random = np.random.default_rng(seed)
    x_X = np.linspace(-EDGE, EDGE, 81)
    while True:
        slope_E = random.uniform(0.8, 1.6, experts) * random.choice([-1, 1], experts)
        intercept_E = random.uniform(0.4, 1.2, experts) * random.choice([-1, 1], experts)
        mean_XE = np.outer(x_X, slope_E) + intercept_E
        pairs = [(one, other) for one in range(experts) for other in range(one)]
        if min(np.abs(mean_XE[:, one] - mean_XE[:, other]).mean() for one, other in pairs) >= 1:
            break
    gate_PE = np.stack([random.uniform(-1, 1, experts), random.uniform(-0.5, 0.5, experts)])
    gate_PE[:, -1] = 0
    variance_E = np.log(random.uniform(0.15, 0.35, experts))
    return np.stack([slope_E, intercept_E, variance_E, *gate_PE]), float(random.uniform(0.3, 0.7))


class Profile:
    """The fitted mixture of a case at one eps, as residuals of a least squares problem whose cost is H^2.

    At eps = 0 and free parameters of 0 it is the truth.
    """

    def __init__(self, case: Case, eps: float) -> None:
        self.case, self.eps = case, eps
        truth_PE, share = draw_truth(case.truth, case.experts)
        base_PE = np.concatenate([np.repeat(truth_PE[:, :1], case.atoms, axis=1), truth_PE[:, 1:]], axis=1)
        # Atoms share their expert's tokens; without biases they can only do so evenly, and the truth's first expert counts
        # as often as it has atoms.
        shares = [share, 1 - share] if case.atoms == 2 else [1 / case.atoms] * case.atoms
        base_PE[4, : case.atoms] += np.log(shares)
        base_PE[3] *= case.gate == "softmax"
        base_PE[4] *= case.bias
        self.truth_PE = torch.tensor(base_PE)
        self.split_PE = torch.zeros_like(self.truth_PE)
        for name, part in DIRECTIONS[case.split].items():
            self.split_PE[PARAMETERS.index(name), :2] = torch.tensor([part / 2, -part / 2], dtype=torch.float64)
        self.free_ZPE = torch.tensor(np.stack(self._free()))
        x_X, weight_X = input_nodes(case, eps, base_PE)
        mean_XE = ACTIVATIONS[case.expert](torch.outer(x_X, self.truth_PE[0]) + self.truth_PE[1])
        tail = TARGET_TAIL * float((self.truth_PE[2].max() / 2).exp())
        low, high = float(mean_XE.min()) - tail, float(mean_XE.max()) + tail
        steps = math.ceil((high - low) / TARGET_STEP * case.refined)
        self.x_X, self.y_Y = x_X, torch.linspace(low, high, steps + 1, dtype=torch.float64)
        self.root_weight_XY = (weight_X[:, None] * (self.y_Y[1] - self.y_Y[0])).sqrt()

    def _free(self) -> list[np.ndarray]:
        """What each free parameter adds to the table: one entry, or those of all atoms whose differences are held."""
        found: list[np.ndarray] = []
        for row, name in enumerate(PARAMETERS):
            if (name == "gate-slope" and self.case.gate != "softmax") or (name == "gate-bias" and not self.case.bias):
                continue
            # The atoms' shares are held too: an atom without any could lie anywhere.
            held = self.case.atoms if name == "gate-bias" else 2 if name in DIRECTIONS[self.case.split] else 0
            experts = self.truth_PE.shape[1]
            groups = [list(range(held))] * (held > 0) + [[expert] for expert in range(held, experts)]
            for group in groups[:-1] if name.startswith("gate") else groups:
                entry_PE = np.zeros(self.truth_PE.shape)
                entry_PE[row, group] = 1
                found.append(entry_PE)
        return found

    def table(self, free_Z: Tensor) -> Tensor:
        """Parameters [P, E] of the fitted mixture."""
        return self.truth_PE + self.eps * self.split_PE + torch.tensordot(free_Z, self.free_ZPE, 1)

    def features(self, table_PE: Tensor) -> Tensor:
        """Logarithm of the gate, mean and logarithm of the variance of each expert: [X, E, 3]."""
        slope_E, intercept_E, variance_E, gate_slope_E, gate_bias_E = table_PE
        mean_XE = ACTIVATIONS[self.case.expert](self.x_X[:, None] * slope_E + intercept_E)
        if self.case.gate == "softmax":
            score_XE = self.x_X[:, None] * gate_slope_E
        else:
            response_XE = torch.nn.functional.softplus(mean_XE)
            score_XE = response_XE if self.case.gate == "response" else response_XE.log()
        log_gate_XE = (score_XE + gate_bias_E).log_softmax(dim=-1)
        return torch.stack([log_gate_XE, mean_XE, variance_E.expand_as(mean_XE)], dim=-1)

    def log_parts(self, features_XE3: Tensor) -> Tensor:
        """Logarithm of each expert's part of the density, [X, Y, E]."""
        log_gate_XE, mean_XE, variance_XE = features_XE3[:, None].unbind(dim=-1)
        error_XYE = self.y_Y[None, :, None] - mean_XE
        return log_gate_XE - (error_XYE**2 * (-variance_XE).exp() + variance_XE + math.log(2 * math.pi)) / 2

    @cached_property
    def true_root_XY(self) -> Tensor:
        """Square root of the true density."""
        return self.log_parts(self.features(self.truth_PE)).logsumexp(dim=-1).div(2).exp()

    def residuals(self, free_Z: Tensor) -> Tensor:
        """Weighted differences of the densities' roots, [X Y]: half the sum of their squares is H^2."""
        root_XY = self.log_parts(self.features(self.table(free_Z))).logsumexp(dim=-1).div(2).exp()
        return (self.root_weight_XY * (root_XY - self.true_root_XY)).flatten()

    def jacobian(self, free_Z: Tensor) -> Tensor:
        """Of the residuals, [X Y, Z]: exact, by forward mode through the features and by hand from there on."""
        slopes_XE3Z = jacfwd(lambda free: self.features(self.table(free)))(free_Z)
        features_XE3 = self.features(self.table(free_Z))
        parts_XYE = self.log_parts(features_XE3)
        log_density_XY = parts_XYE.logsumexp(dim=-1)
        _, mean_XE, variance_XE = features_XE3[:, None].unbind(dim=-1)
        scaled_XYE = (self.y_Y[None, :, None] - mean_XE) * (-variance_XE).exp()
        error_XYE = scaled_XYE * (self.y_Y[None, :, None] - mean_XE)
        scores_XYE3 = torch.stack([torch.ones_like(scaled_XYE), scaled_XYE, (error_XYE - 1) / 2], dim=-1)
        half_root_XY = self.root_weight_XY * (log_density_XY / 2).exp() / 2
        outer_XYE = half_root_XY[..., None] * (parts_XYE - log_density_XY[..., None]).exp()
        rows = (outer_XYE[..., None] * scores_XYE3).flatten(start_dim=2)
        return torch.bmm(rows, slopes_XE3Z.flatten(1, 2)).flatten(0, 1)


def input_nodes(case: Case, eps: float, truth_PE: np.ndarray) -> tuple[Tensor, Tensor]:
    """Nodes and weights [X] of the mean over the input.

    Where an expert has a kink, its atoms' kinks lie about eps apart, and what the density notices of that lies between them:
    nodes that are further apart than they do not see it. There are panels of eps / 2 around every true kink, which grow with
    the distance from it.
    """
    if case.expert != "relu":
        nodes, weights = np.polynomial.legendre.leggauss(INPUT_NODES * case.refined)
        return torch.tensor(EDGE * nodes), torch.tensor(weights / 2)
    edges = {*np.arange(-EDGE, EDGE, PANEL).tolist(), EDGE}
    for kink in set((-truth_PE[1] / truth_PE[0]).tolist()):
        around = [eps / 2 * step for step in range(5)]
        while 0 < around[-1] < PANEL:
            around.append(3 * around[-1])
        edges |= {kink + side * distance for distance in around for side in (-1, 1)}
    bounds = np.array(sorted(edge for edge in edges if -EDGE <= edge <= EDGE))
    nodes, weights = np.polynomial.legendre.leggauss(PANEL_NODES * case.refined)
    middles, halves = (bounds[1:] + bounds[:-1]) / 2, np.diff(bounds) / 2
    x_X = (middles[:, None] + halves[:, None] * nodes).flatten()
    return torch.tensor(x_X), torch.tensor((halves[:, None] * weights).flatten() / (2 * EDGE))


def least_distance(case: Case, eps: float) -> list[float]:
    """The Hellinger distance that each start ends at; the least of them is the best known H(eps).

    Levenberg-Marquardt finds local minima: nothing proves that one of them is the global one.
    """
    profile = Profile(case, eps)
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(case.name.encode()).digest()[:4]))
    found = []
    for scale in START_SCALES * STARTS_OF_ATOMS[case.atoms]:
        solution = least_squares(
            lambda free_Z: profile.residuals(torch.from_numpy(free_Z)).numpy(),
            scale(eps) * random.standard_normal(len(profile.free_ZPE)),
            jac=lambda free_Z: profile.jacobian(torch.from_numpy(free_Z)).numpy(),
            method="lm", ftol=TOLERANCE, xtol=TOLERANCE, gtol=TOLERANCE, max_nfev=MOST_EVALUATIONS,
        )  # fmt: skip
        found.append(math.sqrt(solution.cost))
    return found
