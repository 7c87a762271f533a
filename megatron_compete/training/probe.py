"""Held-out loss and router statistics of a model on fixed text; `probe_log.py` takes them while a job trains.

Any router that is a `TopKRouter` is asked for what it did with the text. A probe draws no random numbers and changes no
state.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.dataset import open_dataset
from megatron_compete.routing.router_statistics import (
    coactivation,
    decision_margin,
    pack_choices,
    pair_counts,
    router_entropy,
)
from megatron_compete.routing.rule import RouterRule
from megatron_compete.upstream import wrap_symbol

REMEMBERED_TOKENS = 256
"""Tokens whose experts a line names, evenly spaced over the probe's."""


def read_sequences(prefix: str, count: int, length: int) -> Tensor:
    """`count` windows of `length` + 1 ids, evenly spaced over a dataset's tokens: int64 [count, length + 1].

    Raises:
        CompeteError: no such dataset, or one with too little text.
    """
    try:
        ids = open_dataset(prefix).ids()
    except CompeteError as error:
        raise CompeteError(f"--probe-data {prefix}: {error}") from None
    if len(ids) < count * length + 1:
        raise CompeteError(
            f"--probe-data {prefix} holds {len(ids)} tokens, and {count} sequences of {length} need more: "
            "lower --probe-sequences or hold out more text"
        )
    starts = np.linspace(0, len(ids) - length - 1, count).astype(np.int64)
    return torch.from_numpy(np.stack([ids[start : start + length + 1] for start in starts]).astype(np.int64))


@dataclass
class RouterStatistics:
    """Sums of one router over the probe's tokens."""

    rule: RouterRule
    entropy: float = 0.0
    margin: float = 0.0
    tokens: int = 0
    pairs_EE: Tensor | float = 0.0
    maps_TE: list[Tensor] | None = None
    has_logits: bool = True
    """Whether it chooses by probabilities, which then have entropy and margin."""

    def add(self, logits_TE: Tensor | None, map_TE: Tensor) -> None:
        """Take one batch of tokens; of a router without logits entropy and margin are not a number."""
        self.has_logits = self.has_logits and logits_TE is not None
        probs_TE = None if logits_TE is None else self.rule.probabilities(logits_TE)
        self.entropy += math.nan if probs_TE is None else float(router_entropy(probs_TE).sum())
        self.margin += math.nan if probs_TE is None else float(decision_margin(probs_TE, self.rule.top_k).sum())
        self.tokens += len(map_TE)
        map_TE = map_TE.bool().cpu()
        self.pairs_EE = self.pairs_EE + pair_counts(map_TE)
        self.maps_TE = [*(self.maps_TE or []), map_TE]

    def chosen(self) -> Tensor:
        """Experts of the remembered tokens, bool [N, E]."""
        assert self.maps_TE is not None, "the router was not asked"
        whole_TE = torch.cat(self.maps_TE)
        return whole_TE[:: max(1, -(-len(whole_TE) // REMEMBERED_TOKENS))]


def routers_of(model: torch.nn.Module) -> list[TopKRouter]:
    """The decoder's routers in order of depth: without those of multi-token prediction, which Megatron keeps in a module
    `mtp` and does not mark in hybrid models."""
    named = (pair for pair in model.named_modules() if isinstance(pair[1], TopKRouter))
    return sorted((router for name, router in named if "mtp" not in name.split(".")), key=lambda r: r.layer_number)


@contextmanager
def listening(routers: list[TopKRouter]) -> Iterator[list[RouterStatistics]]:
    """Statistics of the routers, filled by the forward passes inside."""
    statistics = [RouterStatistics(RouterRule.of(vars(router.config))) for router in routers]
    with ExitStack() as stack:
        for router, one in zip(routers, statistics):
            stack.enter_context(_heard(router, one))
        yield statistics


@contextmanager
def _heard(router: TopKRouter, statistics: RouterStatistics) -> Iterator[None]:
    """Within it, a router's logits and maps are handed to `statistics`."""
    logits: list[Tensor] = []

    def remember(upstream: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        logits.append(upstream(*args, **kwargs))
        return logits[-1]

    def add(module: torch.nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor]) -> None:
        statistics.add(logits[-1].reshape(-1, logits[-1].shape[-1]) if logits else None, outputs[1])
        logits.clear()

    with wrap_symbol("megatron.core.transformer.moe.router:TopKRouter.gating", remember, on=router):
        hook = router.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()


@torch.no_grad()
def probe(model: torch.nn.Module, sequences: Tensor, batch: int) -> dict[str, Any]:
    """Mean loss of the held-out tokens in nats, and what each router did.

    Args:
        model: as the trainer holds it; put into evaluation mode and back.
        sequences: ids [N, S + 1].
        batch: sequences to a forward pass.
    """
    device = next(model.parameters()).device
    length = sequences.shape[1] - 1
    mask = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    positions = torch.arange(length, device=device)
    total = 0.0
    model.eval()
    try:
        with listening(routers_of(model)) as statistics:
            for part in sequences.to(device).split(batch):
                rows = len(part)
                losses = model(
                    part[:, :-1], positions.expand(rows, -1), mask.expand(rows, 1, -1, -1), labels=part[:, 1:]
                )
                total += float(losses.double().sum())
    finally:
        model.train()
    return {"loss": total / (len(sequences) * length), **summary(statistics)}


def summary(statistics: list[RouterStatistics]) -> dict[str, Any]:
    """A probe line's part on routers, of those that `listening` heard; empty where there are none."""
    if not statistics:
        return {}
    pairs = [one.pairs_EE for one in statistics]
    chosen_LNE = torch.stack([one.chosen() for one in statistics])
    of_logits = {
        "entropy": [one.entropy / one.tokens for one in statistics],
        "margin": [one.margin / one.tokens for one in statistics],
    }
    return {
        "load": [pair.diagonal().long().tolist() for pair in pairs if isinstance(pair, Tensor)],
        **(of_logits if all(one.has_logits for one in statistics) else {}),
        "coactivation": [coactivation(pair) for pair in pairs if isinstance(pair, Tensor)],
        "choices_shape": list(chosen_LNE.shape),
        "choices": pack_choices(chosen_LNE),
    }


def digest_weights(model: torch.nn.Module) -> str:
    """Short sha256 over all weights but the routers': runs that start alike have the same."""
    whole = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if ".router." not in name:
            whole.update(parameter.detach().float().cpu().numpy().tobytes())
    return whole.hexdigest()[:16]
