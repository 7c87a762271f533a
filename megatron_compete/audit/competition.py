"""What all experts would have answered: agreement of the router with two competitions, and what another choice costs.

B sequences of L tokens at a time, T = B L, E experts, K experts of a token, H width of what the experts see.

A batch takes a forward and a backward pass, all experts on every layer's tokens, and for regret one more forward pass for
each layer and each of `TARGETS`.
"""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_compete.audit.layers import Call, MoeLayer, probing, sending
from megatron_compete.audit.measures import TARGETS
from megatron_compete.audit.metrics.agreement import overlap
from megatron_compete.audit.metrics.intervals import mean_interval
from megatron_compete.audit.metrics.similarity import output_cosines
from megatron_compete.audit.metrics.use import load_counts
from megatron_compete.audit.model import Model
from megatron_compete.audit.parts import zeros
from megatron_compete.audit.results import Competition, Regret
from megatron_compete.audit.scores import ScoreFunctions, ranking, scores
from megatron_compete.audit.text import Text
from megatron_compete.routing.responses import scored_softplus
from megatron_compete.routing.utility import utility

CHUNK_BYTES = 2**28
"""Of all experts' inputs, inner activations and outputs at a time, about."""


class CompetitionPart:
    """The sums behind `Competition`, `Regret` and the similarity of outputs."""

    name = "competition"

    def __init__(
        self, model: Model, text: Text, functions: ScoreFunctions, batch: int, sequences: int, regret_sequences: int
    ) -> None:
        """The first `sequences` of the text compete, the first `regret_sequences` of these are also sent elsewhere."""
        self.model, self.text, self.functions, self.batch = model, text, functions, batch
        self.sequences, self.regret_sequences = sequences, min(regret_sequences, sequences)
        self.units = -(-sequences // batch)
        self.state: dict[str, Tensor] = {}
        for layer in model.layers:
            shapes = {
                "agreement": (2,), "load": (2, layer.count), "cosines": (layer.count, layer.count),
                "changes": (len(TARGETS), self.regret_sequences),
            }  # fmt: skip
            self.state |= {f"{name}.{layer.number}": zeros(*shape) for name, shape in shapes.items()}

    def step(self, unit: int) -> None:
        """A batch of sequences."""
        rows = slice(unit * self.batch, min((unit + 1) * self.batch, self.sequences))
        ids_BL = self.text.ids_SL[rows]
        calls, gradients = self._gradients(ids_BL)
        regretted = max(0, min(rows.stop, self.regret_sequences) - rows.start)
        with torch.no_grad():
            losses_B = self.model.losses(ids_BL[:regretted]) if regretted else zeros(0)
            for layer in self.model.layers:
                call = calls.pop(layer)
                winners = self._compete(layer, call, gradients.pop(layer))
                if regretted:
                    tokens = regretted * self.text.length
                    part = Call(*(one[:tokens] for one in vars(call).values()))
                    changes = self._changes(layer, part, [one[:tokens] for one in winners], ids_BL[:regretted], unit)
                    found = torch.stack([losses - losses_B for losses in changes])
                    self.state[f"changes.{layer.number}"][:, rows.start : rows.start + regretted] = found.cpu()

    def _gradients(self, ids_BL: Tensor) -> tuple[dict[MoeLayer, Call], dict[MoeLayer, Tensor]]:
        """What every layer was asked, and dL/do of its mixture [T, H]."""
        calls: dict[MoeLayer, Call] = {}
        with sending({layer: functools.partial(_note, calls, layer) for layer in self.model.layers}):
            with probing(self.model.layers) as probes, torch.enable_grad():
                loss = self.model.losses(ids_BL).sum()
            gradients = torch.autograd.grad(loss, [probes[layer] for layer in self.model.layers])
        return calls, dict(zip(self.model.layers, gradients))

    def _compete(self, layer: MoeLayer, call: Call, gradients_TH: Tensor) -> list[Tensor]:
        """All experts on all tokens: the K best by utility and by response, each [T, K] from the best."""
        utilities, responses = [], []
        # An expert's inner width is of the order of 4 H at most, its input and output H each.
        chunk = max(1, CHUNK_BYTES // (layer.count * call.hidden_TH.shape[1] * 4 * 6))
        for hidden_tH, gradients_tH in zip(call.hidden_TH.split(chunk), gradients_TH.split(chunk)):
            outputs_EtH = layer.all_outputs(hidden_tH, call.weights_TK.dtype)
            utilities.append(utility(outputs_EtH, gradients_tH).T)
            responses.append(scored_softplus(outputs_EtH).T)
            self.state[f"cosines.{layer.number}"] += output_cosines(outputs_EtH).cpu()
        top_k = call.choices_TK.shape[1]
        winners = [torch.cat(utilities).topk(top_k, largest=False).indices, torch.cat(responses).topk(top_k).indices]
        for place, winners_TK in enumerate(winners):
            agreement = overlap(call.choices_TK, winners_TK, layer.count).sum(dtype=torch.float64)
            self.state[f"agreement.{layer.number}"][place] += agreement.cpu()
            self.state[f"load.{layer.number}"][place] += load_counts(winners_TK, layer.count).cpu()
        return winners

    def _changes(
        self, layer: MoeLayer, call: Call, winners: list[Tensor], ids_BL: Tensor, unit: int
    ) -> Iterator[Tensor]:
        """Losses [B] of the batch with this layer's tokens at each of `TARGETS`."""
        for choices, weights in _elsewhere(layer, call, winners, self.functions.of(layer, call), unit):
            with sending({layer: lambda _, choices=choices, weights=weights: (choices, weights)}):  # type: ignore[misc]
                yield self.model.losses(ids_BL)

    def competition(self, layer: MoeLayer) -> Competition:
        """What the sums say of one layer."""
        tokens, number = self.sequences * self.text.length, layer.number
        agreement, loads = self.state[f"agreement.{number}"] / tokens, self.state[f"load.{number}"]
        shares = (loads / loads.sum(1, keepdim=True)).tolist()
        return Competition(
            tokens,
            agreement_utility=float(agreement[0]),
            agreement_response=float(agreement[1]),
            load_utility=shares[0],
            load_response=shares[1],
        )

    def regret(self, layer: MoeLayer) -> Regret | None:
        """The same; None where no sequence was to be sent elsewhere."""
        if not self.regret_sequences:
            return None
        changes, length = self.state[f"changes.{layer.number}"], self.text.length
        tokens_S = torch.full((self.regret_sequences,), float(length), dtype=torch.float64)
        intervals = {target: mean_interval(changes[place], tokens_S) for place, target in enumerate(TARGETS)}
        return Regret(self.regret_sequences * length, intervals)

    def output_similarity(self, layer: MoeLayer) -> Tensor:
        """[E, E]: cosine of two experts' outputs for a token, mean over tokens."""
        return self.state[f"cosines.{layer.number}"] / (self.sequences * self.text.length)


def _note(calls: dict[MoeLayer, Call], layer: MoeLayer, call: Call) -> None:
    calls[layer] = call


def _elsewhere(
    layer: MoeLayer, call: Call, winners: list[Tensor], function: str, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Choices and weights of each of `TARGETS`.

    The weights are the router's own, the largest for the best of the new experts, so that what is measured is the choice
    and not the scale of the output. To "all" the sum of the weights is shared by the router's scores.
    """
    weights_TK = call.weights_TK.sort(dim=-1, descending=True).values
    tokens, top_k = weights_TK.shape
    ranked_TE = ranking(layer, call, function)
    yield from ((choices_TK, weights_TK) for choices_TK in winners)
    for dropped in (1, 2):
        # Where fewer than K are left, the last ones come round again from the front.
        yield ranked_TE.roll(-dropped, dims=1)[:, :top_k], weights_TK
    generator = torch.Generator().manual_seed(layer.number * 1_000_003 + seed)
    drawn_TE = torch.rand(tokens, layer.count, generator=generator).to(weights_TK.device)
    yield drawn_TE.topk(top_k).indices, weights_TK
    every_TE = torch.arange(layer.count, device=weights_TK.device).repeat(tokens, 1)
    shared_TE = scores(call, function) * weights_TK.float().sum(-1, keepdim=True)
    yield every_TE, shared_TE.to(weights_TK.dtype)
