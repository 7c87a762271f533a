"""ReMoE, USMoE and Expert-Threshold as dense layers in fp64: their formulas written out, and their state after a step.

T tokens, E experts, K experts a token on average.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_compete.moe.baselines.config import BaselineConfig
from tests.moe.layouts import WINNERS as K
from tests.moe.reference import Weights, expert_outputs, shared_output
from tests.moe.steps import Batch

Choice = tuple[Tensor, Tensor, Tensor]
"""Weights and map of the experts [T, E], and the auxiliary loss of the microbatch."""


@dataclass(frozen=True)
class Variable:
    """One router: its settings, Megatron's, and its formulas."""

    name: str
    settings: BaselineConfig
    choose: Callable[[Tensor, Tensor, Tensor | None], Choice]
    """From logits, valid tokens and the state of the steps before (None at the first) to the choice."""
    observe: Callable[[Tensor], Tensor]
    """From the logits of a microbatch's valid tokens to what it adds to the state, counted by its tokens."""
    follow: Callable[[Tensor | None, Tensor, int], Tensor]
    """From state, mean observation and number of the step (from 1) to the next state."""
    overrides: dict[str, Any]
    scale: float = 1.0

    def step(self, state: Tensor | None) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """A layer's step for `tests.moe.steps.reference_step`."""

        def layer(
            tokens: Tensor, weights: Weights, k: int, config: Any, valid: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            g, chosen, loss = self.choose(tokens @ weights.router.T, valid, state)
            y = expert_outputs(tokens, weights)
            output = sum(self.scale * (g * chosen)[:, e, None] * y[:, e] for e in range(y.shape[1]))
            return output + shared_output(tokens, weights), loss, chosen  # type: ignore[return-value]

        return layer

    def after(self, state: Tensor | None, batch: Batch, weights: Weights, step: int) -> Tensor:
        """The state after a step over all microbatches of all data parallel ranks."""
        microbatches = [m for of_rank in batch for m in of_rank if m.valid_T.any()]
        counts = [int(m.valid_T.sum()) for m in microbatches]
        seen = [self.observe(m.flat(m.tokens.double())[m.valid_T] @ weights.router.double().T) for m in microbatches]
        return self.follow(state, sum(n * s for n, s in zip(counts, seen)) / sum(counts), step)  # type: ignore[operator, arg-type]


def balance(g: Tensor, chosen: Tensor, valid: Tensor) -> Tensor:
    """sum_e f_e mean_t g_te with f_e = E / (K T) * tokens of e: ReMoE's penalty, and Switch's loss for softmax g."""
    g, chosen = g[valid], chosen[valid]
    tokens, experts = g.shape
    if tokens == 0:
        return g.sum()
    return sum(experts / (K * tokens) * chosen[:, e].sum() * g[:, e].sum() / tokens for e in range(experts))  # type: ignore[return-value]


@dataclass(frozen=True)
class Defaults(Variable):
    """Default MoE: the experts that were not chosen answer with their default vectors, the state [E, H]."""

    def step(self, state: Tensor | None) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        def layer(
            tokens: Tensor, weights: Weights, k: int, config: Any, valid: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            p, chosen, loss = self.choose(tokens @ weights.router.T, valid, state)
            y = expert_outputs(tokens, weights)
            d = torch.zeros_like(y) if state is None else state.double().expand_as(y)
            output = self.scale * (p.unsqueeze(-1) * torch.where(chosen.unsqueeze(-1), y, d)).sum(1)
            return output + shared_output(tokens, weights), loss, chosen

        return layer

    def after(self, state: Tensor | None, batch: Batch, weights: Weights, step: int) -> Tensor:
        """The state after a step, from the experts' answers to all tokens that were theirs and count."""
        double = weights.double()
        answers, owners = [], []
        for microbatch in (m for of_rank in batch for m in of_rank):
            tokens = microbatch.flat(microbatch.tokens.double())
            answers.append(expert_outputs(tokens, double).detach())
            chosen = default_moe((tokens @ double.router.T).detach(), microbatch.valid_T, None)[1]
            owners.append(chosen & microbatch.valid_T.unsqueeze(-1))
        y, of = torch.cat(answers), torch.cat(owners)
        before = torch.zeros(y.shape[1:], dtype=torch.float64) if state is None else state.double()
        after = before.clone()
        for e in range(y.shape[1]):
            if of[:, e].any():
                after[e] = 0.8 * before[e] + 0.2 * y[of[:, e], e].mean(0)
        return after


REMOE = BaselineConfig(l1_init=0.3, l1_factor=1.5)
USMOE = BaselineConfig(usmoe_alpha=0.4, threshold_decay=0.8)
THRESHOLD = BaselineConfig(threshold_decay=0.8)
DEFAULT = BaselineConfig(default_decay=0.8)
AUX_COEFF = 0.7


def remoe(logits: Tensor, valid: Tensor, state: Tensor | None) -> Choice:
    chosen = logits > 0
    g = torch.where(chosen, logits, 0.0)
    return g, chosen, (REMOE.l1_init if state is None else state) * balance(g, chosen, valid)


def remoe_follow(state: Tensor | None, share: Tensor, step: int) -> Tensor:
    before = torch.tensor(REMOE.l1_init) if state is None else state
    sparsity, target = 1 - share, 1 - K / 8
    return before * (REMOE.l1_factor if sparsity < target else 1 / REMOE.l1_factor)


def unified(logits: Tensor) -> Tensor:
    a, experts = USMOE.usmoe_alpha, logits.shape[1]
    return (1 - a) * logits.softmax(-1) + a * 2 / (1 + (-logits).exp()) / experts


def usmoe(logits: Tensor, valid: Tensor, state: Tensor | None) -> Choice:
    g = unified(logits)
    cut = state if state is not None else usmoe_cut(logits[valid]) if valid.any() else torch.zeros(1)
    chosen = g >= cut - 1e-9
    return g, chosen, AUX_COEFF * balance(logits.softmax(-1), chosen, valid)


def usmoe_cut(logits: Tensor) -> Tensor:
    return unified(logits).flatten().sort(descending=True).values[len(logits) * K - 1].reshape(1).detach()


def threshold(logits: Tensor, valid: Tensor, state: Tensor | None) -> Choice:
    cut = state if state is not None else threshold_cut(logits[valid]) if valid.any() else torch.zeros(8)
    return 1 / (1 + (-logits).exp()), logits >= cut - 1e-9, logits.sum() * 0


def threshold_cut(logits: Tensor) -> Tensor:
    share = max(round(len(logits) * K / logits.shape[1]), 1)
    return logits.sort(dim=0, descending=True).values[share - 1].detach()


def default_moe(logits: Tensor, valid: Tensor, state: Tensor | None) -> Choice:
    p = logits.softmax(-1)
    chosen = p >= p.sort(-1, descending=True).values[:, K - 1 : K]
    return p, chosen, AUX_COEFF * balance(p, chosen, valid)


def running(state: Tensor | None, cut: Tensor, step: int) -> Tensor:
    """Of two steps: the second weighs 1 / (1 + decay)."""
    return cut if state is None else (0.8 * state + cut) / 1.8


ROUTERS = {
    "remoe": Variable("remoe", REMOE, remoe, lambda z: (z > 0).double().mean(), remoe_follow, {}),
    "usmoe": Variable(
        "usmoe", USMOE, usmoe, usmoe_cut, running,
        dict(moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=AUX_COEFF),
    ),
    "threshold": Variable(
        "threshold", THRESHOLD, threshold, threshold_cut, running, dict(moe_router_topk_scaling_factor=1.5), scale=1.5
    ),
    "default-moe": Defaults(
        "default-moe", DEFAULT, default_moe, lambda z: z, running,
        dict(moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=AUX_COEFF, moe_router_topk_scaling_factor=1.5),
        scale=1.5,
    ),
}  # fmt: skip
