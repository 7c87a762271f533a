"""Which experts the tokens go to: one forward pass over the text, at little more than the price of an evaluation.

B sequences of L tokens at a time, S in all, T = B L, E experts, K experts of a token, D domains.
"""

import functools

import torch
from torch import Tensor

from megatron_compete.audit.layers import Call, MoeLayer, sending
from megatron_compete.audit.metrics.agreement import overlap
from megatron_compete.audit.metrics.intervals import mean_interval
from megatron_compete.audit.metrics.use import (
    coactivation,
    coactivation_rates,
    dead_experts,
    margins,
    mutual_information,
    normalized_entropy,
    top_pairs,
)
from megatron_compete.audit.model import Model
from megatron_compete.audit.parts import zeros
from megatron_compete.audit.results import Interval, Use
from megatron_compete.audit.scores import ScoreFunctions, scores
from megatron_compete.audit.text import Text


class UsePart:
    """The sums behind `Use`, and each sequence's loss."""

    name = "use"

    def __init__(self, model: Model, text: Text, functions: ScoreFunctions, batch: int, keep_choices: bool) -> None:
        """`keep_choices`: also keep each token's experts, for a comparison with another checkpoint."""
        self.model, self.text, self.functions, self.batch = model, text, functions, batch
        self.keep_choices = keep_choices
        self.units = -(-len(text.ids_SL) // batch)
        self.state: dict[str, Tensor] = {"loss": zeros(len(text.ids_SL))}
        for layer in model.layers:
            shapes = {
                "load": (len(text.domains), layer.count), "pairs": (layer.count, layer.count),
                "token_entropy": (), "margin": (), "sequence_entropy": (),
            }  # fmt: skip
            self.state |= {f"{name}.{layer.number}": zeros(*shape) for name, shape in shapes.items()}
            if keep_choices:
                kept = torch.zeros(len(text.ids_SL), text.length * layer.top_k, dtype=torch.int32)
                self.state[f"choices.{layer.number}"] = kept

    @torch.no_grad()
    def step(self, unit: int) -> None:
        """A batch of sequences."""
        rows = slice(unit * self.batch, (unit + 1) * self.batch)
        takes = {layer: functools.partial(self._take, layer, rows) for layer in self.model.layers}
        with sending(takes):
            self.state["loss"][rows] = self.model.losses(self.text.ids_SL[rows]).cpu()

    def _take(self, layer: MoeLayer, rows: slice, call: Call) -> None:
        domain_B = self.text.domain_S[rows]
        choices_TK, sequences = call.choices_TK, len(domain_B)
        counts_BE = torch.zeros(sequences, layer.count, dtype=torch.float64, device=choices_TK.device)
        by_sequence = choices_TK.view(sequences, -1)
        counts_BE.scatter_add_(1, by_sequence, torch.ones_like(by_sequence, dtype=torch.float64))
        scores_TE = scores(call, self.functions.of(layer, call))
        found = {
            "load": zeros(len(self.text.domains), layer.count).index_add_(0, domain_B, counts_BE.cpu()),
            "pairs": coactivation(choices_TK, layer.count),
            "token_entropy": normalized_entropy(scores_TE).sum(dtype=torch.float64),
            "margin": margins(scores_TE, choices_TK).sum(dtype=torch.float64),
            "sequence_entropy": normalized_entropy(counts_BE).sum(),
        }
        for name, value in found.items():
            self.state[f"{name}.{layer.number}"] += value.to("cpu", torch.float64)
        if self.keep_choices:
            self.state[f"choices.{layer.number}"][rows] = by_sequence.cpu().int()

    def loss(self) -> Interval:
        """Nats per token."""
        return mean_interval(self.state["loss"], self._tokens_S())

    def loss_by_domain(self) -> list[float]:
        """The same of each domain."""
        sums_D, tokens_D = (
            zeros(len(self.text.domains)).index_add_(0, self.text.domain_S, one)
            for one in (self.state["loss"], self._tokens_S())
        )
        return (sums_D / tokens_D).tolist()

    def tokens_by_domain(self) -> list[int]:
        """[D]."""
        return (torch.bincount(self.text.domain_S, minlength=len(self.text.domains)) * self.text.length).tolist()

    def use(self, layer: MoeLayer) -> Use:
        """What the sums say of one layer."""
        counts_DE = self.state[f"load.{layer.number}"]
        load_E = counts_DE.sum(0) / counts_DE.sum()
        tokens = len(self.text.ids_SL) * self.text.length
        return Use(
            load=load_E.tolist(),
            load_by_domain=(counts_DE / counts_DE.sum(1, keepdim=True)).tolist(),
            dead=dead_experts(load_E),
            load_entropy=float(normalized_entropy(load_E)),
            token_entropy=float(self.state[f"token_entropy.{layer.number}"]) / tokens,
            margin=float(self.state[f"margin.{layer.number}"]) / tokens,
            domain_information=mutual_information(counts_DE),
            sequence_entropy=float(self.state[f"sequence_entropy.{layer.number}"]) / len(self.text.ids_SL),
            top_pairs=top_pairs(self.coactivation(layer)),
        )

    def coactivation(self, layer: MoeLayer) -> Tensor:
        """[E, E]: share of the row's tokens that have the column too."""
        return coactivation_rates(self.state[f"pairs.{layer.number}"])

    def _tokens_S(self) -> Tensor:
        return torch.full((len(self.text.ids_SL),), float(self.text.length), dtype=torch.float64)


class AgainstPart:
    """Another checkpoint's choices on the same tokens, beside those that a `UsePart` kept."""

    name = "against"

    def __init__(self, model: Model, text: Text, choices: dict[int, Tensor], batch: int) -> None:
        """`choices`: by layer, [S, L K]."""
        self.model, self.text, self.choices, self.batch = model, text, choices, batch
        self.units = -(-len(text.ids_SL) // batch)
        self.state: dict[str, Tensor] = {
            f"{name}.{layer.number}": zeros() for layer in model.layers for name in ("same", "changed")
        }

    @torch.no_grad()
    def step(self, unit: int) -> None:
        """A batch of sequences."""
        rows = slice(unit * self.batch, (unit + 1) * self.batch)
        takes = {layer: functools.partial(self._take, layer, rows) for layer in self.model.layers}
        with sending(takes):
            self.model.losses(self.text.ids_SL[rows])

    def _take(self, layer: MoeLayer, rows: slice, call: Call) -> None:
        others_TK = self.choices[layer.number][rows].view_as(call.choices_TK).to(call.choices_TK)
        same_T = overlap(others_TK, call.choices_TK, layer.count).double()
        self.state[f"same.{layer.number}"] += same_T.sum().cpu()
        self.state[f"changed.{layer.number}"] += (same_T < 1).sum().cpu()

    def shares(self, layer: MoeLayer) -> tuple[float, float]:
        """Router saturation and expert change rate."""
        tokens = len(self.text.ids_SL) * self.text.length
        return tuple(float(self.state[f"{name}.{layer.number}"]) / tokens for name in ("same", "changed"))  # type: ignore[return-value]
