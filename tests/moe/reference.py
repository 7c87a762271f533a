"""Competing steps of both kinds and a normal step with dense tensors and plain autograd, in whatever precision their weights have."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.config import CompeteConfig

SEQUENCES = 2
"""B of every microbatch: its tokens are [S, B] flattened."""


@dataclass
class Weights:
    """All weights of one layer: router [E, H], fc1 [E, 2F, H] (gate over up), fc2 [E, H, F], a shared expert's, and the
    projections of a latent one, whose experts have L in place of H: down [L, H], up [H, L].

    Experts with biases [E, F] and [E, H'] have no gate: fc1 [E, F, H], fc2 [E, H', F]. Their output may be of other width.
    """

    router: Tensor
    fc1: Tensor
    fc2: Tensor
    shared_fc1: Tensor | None = None
    shared_fc2: Tensor | None = None
    latent_down: Tensor | None = None
    latent_up: Tensor | None = None
    fc1_bias: Tensor | None = None
    fc2_bias: Tensor | None = None
    activation: Callable[[Tensor], Tensor] = F.silu

    @classmethod
    def random(
        cls, experts: int, hidden: int, ffn: int, seed: int = 0, shared_ffn: int = 0, latent: int = 0
    ) -> "Weights":
        random, width = torch.Generator().manual_seed(seed), latent or hidden
        shapes = {"router": (experts, hidden), "fc1": (experts, 2 * ffn, width), "fc2": (experts, width, ffn)}
        if shared_ffn:
            shapes |= {"shared_fc1": (2 * shared_ffn, hidden), "shared_fc2": (hidden, shared_ffn)}
        if latent:
            shapes |= {"latent_down": (latent, hidden), "latent_up": (hidden, latent)}
        return cls(**{name: torch.randn(shape, generator=random) * 0.3 for name, shape in shapes.items()})

    def map(self, function) -> "Weights":  # type: ignore[no-untyped-def]
        """`function` of every tensor that is there."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Weights(
            **{name: function(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        )

    def double(self) -> "Weights":
        return self.map(lambda weight: weight.double().requires_grad_())

    def grads(self) -> "Weights":
        """The gradients, zero where a weight has none."""
        return self.map(lambda weight: torch.zeros_like(weight) if weight.grad is None else weight.grad)


def expert_outputs(tokens: Tensor, weights: Weights) -> Tensor:
    """What every expert contributes to every token, [T, E, H]."""
    if weights.fc1_bias is not None and weights.fc2_bias is not None:
        hidden = torch.einsum("th,efh->tef", tokens, weights.fc1) + weights.fc1_bias
        return torch.einsum("tef,ehf->teh", weights.activation(hidden), weights.fc2) + weights.fc2_bias
    if weights.latent_down is not None:
        tokens = tokens @ weights.latent_down.T
    gate, up = torch.einsum("th,efh->tef", tokens, weights.fc1).chunk(2, dim=-1)
    outputs = torch.einsum("tef,ehf->teh", weights.activation(gate) * up, weights.fc2)
    return outputs if weights.latent_up is None else outputs @ weights.latent_up.T


def shared_output(tokens: Tensor, weights: Weights) -> Tensor | float:
    """The shared expert on every token, [T, H]; 0 without one."""
    if weights.shared_fc1 is None or weights.shared_fc2 is None:
        return 0.0
    gate, up = (tokens @ weights.shared_fc1.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ weights.shared_fc2.T


@dataclass(frozen=True)
class Router:
    """Megatron's settings of a router, by the formulas; the default is a softmax over the K largest logits."""

    scale: float = 1.0
    """--moe-router-topk-scaling-factor"""
    function: str = "softmax"
    """--moe-router-score-function"""
    pre_softmax: bool = False
    """Weights are shares of the softmax over all experts."""
    groups: tuple[int, int] | None = None
    """Groups of experts, and how many of them a token may use."""
    bias: tuple[float, ...] | None = None
    """The expert bias of each expert."""
    capacity: float | None = None
    """--moe-expert-capacity-factor, with the most probable tokens kept."""
    pads: bool = False
    """--moe-pad-expert-input-to-capacity"""
    shards: int = 1
    """Equal parts of a microbatch that are held, and dropped from, by different ranks."""

    def overrides(self) -> dict[str, Any]:
        """The settings by Megatron's names."""
        groups, chosen = self.groups or (None, None)
        return dict(
            moe_router_topk_scaling_factor=self.scale, moe_router_pre_softmax=self.pre_softmax,
            moe_router_num_groups=groups, moe_router_group_topk=chosen, moe_router_score_function=self.function,
            moe_router_enable_expert_bias=self.bias is not None, moe_expert_capacity_factor=self.capacity,
            moe_pad_expert_input_to_capacity=self.pads,
        )  # fmt: skip

    def scores(self, logits: Tensor) -> Tensor:
        """What each expert gets, [T, E], whoever is chosen."""
        functions = {
            "softmax": lambda z: z.softmax(-1), "sigmoid": torch.sigmoid, "sqrtsoftplus": lambda z: (1 + z.exp()).log().sqrt(),
        }  # fmt: skip
        return functions[self.function](logits)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The p of the paper: scores over their sum, [T, E]."""
        s = self.scores(logits)
        return s / s.sum(-1, keepdim=True)

    def mixture(self, logits: Tensor, k: int) -> Tensor:
        """The weights of the sum of all experts through which utility teaches, [T, E]."""
        alone = self.function != "softmax" and k == 1
        return self.scale * (self.scores(logits) if alone else self.probabilities(logits))

    def best(self, scores: Tensor, k: int) -> Tensor:
        """The k experts [T, k] with the highest scores, in the best groups: token by token."""
        if self.groups is None:
            return scores.topk(k).indices
        count, allowed = self.groups
        chosen = []
        for row in scores.tolist():
            size = len(row) // count
            members = [range(group * size, (group + 1) * size) for group in range(count)]
            worth = [sum(sorted((row[e] for e in group), reverse=True)[: k // allowed]) for group in members]
            best = sorted(range(count), key=lambda group: -worth[group])[:allowed]
            chosen.append(sorted((e for group in best for e in members[group]), key=lambda e: -row[e])[:k])
        return torch.tensor(chosen).view(len(scores), k)

    def choice(self, logits: Tensor, k: int) -> Tensor:
        """The experts that it chooses, [T, k]; groups are ranked by what the experts are."""
        ranked = logits if self.function == "softmax" and not self.pre_softmax else self.scores(logits)
        return self.best(ranked if self.bias is None else ranked + torch.tensor(self.bias), k)

    def weights_of_choice(self, logits: Tensor, k: int) -> Tensor:
        """Those of a normal step that drops nothing, [T, E]."""
        chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, self.choice(logits, k), True)
        shares = self.scores(logits) * chosen
        if not self.pre_softmax and (self.function == "softmax" or k > 1):
            shares = shares / shares.sum(-1, keepdim=True)
        return self.scale * shares

    def weights(self, logits: Tensor, k: int) -> Tensor:
        """Those of a normal step, [T, E]."""
        g = self.weights_of_choice(logits, k)
        if self.capacity is None:
            return g
        kept = []
        for part in g.detach().chunk(self.shards):
            most = math.ceil(len(part) * k / g.shape[1] * self.capacity)
            places = part.argsort(dim=0, descending=True).argsort(dim=0)
            kept.append(places < most)
        return g * torch.cat(kept)


TOP_K = Router()
"""Megatron's default."""


def responses(outputs: Tensor, config: CompeteConfig) -> Tensor:
    """Of every expert to every token, [T, E]."""
    return F.softplus(outputs).mean(-1) if config.response == "softplus" else outputs.norm(dim=-1)


def ranking(s: Tensor, config: CompeteConfig, valid: Tensor) -> Tensor:
    """What the winners are chosen by, [T, E]: responses, or responses centred over the valid tokens."""
    if config.response_centering == "none" or not valid.any():
        return s.detach()
    assert config.response_centering == "batch"
    z = s.detach()
    return (z - z[valid].mean(0)) / (z[valid].std(0, unbiased=False) + 1e-6)


def competing_step(
    tokens: Tensor,
    weights: Weights,
    k: int,
    config: CompeteConfig,
    valid: Tensor | None = None,
    winners: Tensor | None = None,
    router: Router = TOP_K,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, H], the auxiliary loss of the step over the `valid` tokens, and the winners [T, K], by the formulas.

    `winners` replaces the choice, where rounding may have made another.
    """
    valid = torch.ones(len(tokens), dtype=torch.bool) if valid is None else valid
    y = expert_outputs(tokens, weights)
    s = responses(y, config)
    z = ranking(s, config, valid)
    winners = router.best(z, k).sort().values if winners is None else winners
    y_w = y.gather(1, winners.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
    s_w = s.gather(1, winners)
    logits = tokens @ weights.router.T
    total = router.weights_of_choice(logits.detach(), k).sum(1, keepdim=True)
    output = ((total * s_w / s_w.sum(1, keepdim=True)).unsqueeze(-1) * y_w).sum(1) + shared_output(tokens, weights)

    p = router.probabilities(logits)
    if not valid.any():
        return output, p.sum() * 0, winners
    attached = s if config.response_gradients == "all" else s.detach().scatter(1, winners, s_w)
    first = winners.gather(1, z.gather(1, winners).argmax(1, keepdim=True)).squeeze(1)
    loss = (
        config.distill_coeff * distillation(p[valid], z[valid], winners[valid], config)
        + config.diversity_coeff * mean_cosine(y_w[valid])
        + config.response_balance_coeff * balance(attached.softmax(-1), first, valid, config)
    )
    return output, loss, winners


def distillation(p: Tensor, z: Tensor, winners: Tensor, config: CompeteConfig) -> Tensor:
    """Distance of the router's probabilities to the outcome, over all experts and over the winners."""
    if config.distill_standardize:
        z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, unbiased=False)
    q = (z / config.distill_temperature).softmax(-1)
    p_w, q_w = p.gather(1, winners), q.gather(1, winners)
    if config.distill_loss == "mse":
        return (p - q).square().mean() + config.distill_winner_coeff * (p_w - q_w).square().mean()
    p_w, q_w = p_w / p_w.sum(1, keepdim=True), q_w / q_w.sum(1, keepdim=True)
    over_winners = (q_w * (q_w / p_w).log()).sum(1).mean()
    return (q * (q / p).log()).sum(1).mean() + config.distill_winner_coeff * over_winners


def mean_cosine(y_w: Tensor) -> Tensor:
    """Between the outputs of a token's winners [T, K, H], over tokens and ordered pairs."""
    k = y_w.shape[1]
    if k == 1:
        return y_w.new_zeros(())
    cosine = F.cosine_similarity(y_w.unsqueeze(1), y_w.unsqueeze(2), dim=-1)
    return (cosine.sum((1, 2)) - k).mean() / (k * (k - 1))


def balance(shares: Tensor, first: Tensor, valid: Tensor, config: CompeteConfig) -> Tensor:
    """Of the valid tokens' shares [T, E] and first choices [T]."""
    return top1_form(shares, first, valid) if config.balance_loss == "top1" else entropy_form(shares[valid])


def top1_form(shares: Tensor, first: Tensor, valid: Tensor, sequences: int = SEQUENCES) -> Tensor:
    """Mean over sequences that have valid tokens of E * sum_e mean_t(share_te) * (part of the t whose first choice is e)."""
    found = []
    for sequence in range(sequences):
        tokens = [t for t in range(sequence, len(shares), sequences) if valid[t]]
        if tokens:
            part = [sum(int(first[t]) == e for t in tokens) / len(tokens) for e in range(shares.shape[1])]
            mean = [sum(shares[t, e] for t in tokens) / len(tokens) for e in range(shares.shape[1])]
            found.append(shares.shape[1] * sum(p * m for p, m in zip(part, mean, strict=True)))
    return sum(found) / len(found)


def entropy_form(shares: Tensor) -> Tensor:
    """sum_e m_e log m_e with m the mean over the tokens of `shares` [T, E]."""
    m = shares.mean(0)
    return (m * m.log()).sum()


def normal_step(
    tokens: Tensor,
    weights: Weights,
    k: int,
    config: CompeteConfig,
    valid: Tensor | None = None,
    router: Router = TOP_K,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, auxiliary loss and chosen experts of a step without competition."""
    logits = tokens @ weights.router.T
    g = router.weights(logits, k)
    output = torch.einsum("te,teh->th", g, expert_outputs(tokens, weights)) + shared_output(tokens, weights)
    return output, router_losses(router, logits, config, valid), router.choice(logits, k)


def router_losses(router: Router, logits: Tensor, config: CompeteConfig, valid: Tensor | None) -> Tensor:
    """Losses of the router at a step that it routes."""
    valid = torch.ones(len(logits), dtype=torch.bool) if valid is None else valid
    if not valid.any():
        return logits.sum() * 0
    p = router.probabilities(logits)
    loss = config.router_balance_coeff * balance(p, p.argmax(1), valid, config)
    return loss + config.router_z_loss_coeff * (logits.exp().sum(1).log()[valid] ** 2).mean()


def utility_step(
    tokens: Tensor,
    weights: Weights,
    k: int,
    config: CompeteConfig,
    valid: Tensor | None = None,
    router: Router = TOP_K,
) -> tuple[Tensor, Tensor, Tensor]:
    """A normal step whose router learns through the sum of all experts, by a straight-through estimator."""
    logits = tokens @ weights.router.T
    choice = router.choice(logits, k)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, choice, True)
    g = router.weights(logits, k)
    y = expert_outputs(tokens, weights)
    if config.utility_gradient == "dense":
        g, mixture = g.detach(), router.mixture(logits, k)
    else:
        mixture = router.mixture(torch.where(chosen, logits.detach(), logits), k)
    dense = torch.einsum("te,teh->th", mixture, y.detach())
    output = torch.einsum("te,teh->th", g, y) + dense - dense.detach() + shared_output(tokens, weights)
    return output, router_losses(router, logits, config, valid), choice


def sampled_step(
    sampled: Tensor,
    tokens: Tensor,
    weights: Weights,
    k: int,
    config: CompeteConfig,
    valid: Tensor | None = None,
    router: Router = TOP_K,
) -> tuple[Tensor, Tensor, Tensor]:
    """The `sampled` tokens [T] compete and the others are routed: each has its output and gradient from its own step.

    The losses of competition are means over the sample, the router's is one over the tokens that it routes.
    """
    valid = torch.ones(len(tokens), dtype=torch.bool) if valid is None else valid
    if config.kind == "utility":
        own, loss, chosen = utility_step(tokens, weights, k, config, valid, router)
        rest, _, choice = normal_step(tokens, weights, k, config, valid, router)
    else:
        own, loss, chosen = competing_step(tokens, weights, k, config, valid & sampled, router=router)
        rest, of_router, choice = normal_step(tokens, weights, k, config, valid & ~sampled, router)
        loss = loss + of_router
    here = sampled.unsqueeze(1)
    return torch.where(here, own, rest), loss, torch.where(here, chosen, choice)
