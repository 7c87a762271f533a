"""The fused scorer: a chunk's tokens in, scores by this rank's experts out.

G tokens of the chunk over all ranks of the expert group, H hidden size, E this rank's experts.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from megatron_compete.moe.expert_weights import await_parameters, expert_parameters
from megatron_compete.moe.kernels.coverage import ExpertForm
from megatron_compete.moe.kernels.narrow import MAX_WIDTH, held_columns, score_narrow
from megatron_compete.moe.kernels.quantize import quantize_matrices, quantize_rows
from megatron_compete.moe.kernels.tiles import NarrowTiles, WideTiles, for_projection, narrow_candidates, wide_tiles
from megatron_compete.moe.kernels.weights import ExpertWeights, address_table, stacked_table
from megatron_compete.moe.kernels.wide import score_wide


class FusedScorer:
    """Runs this rank's experts by `narrow.py` or `wide.py`; a `Scorer` of `moe/scoring.py`.

    Args:
        experts: Megatron's module, covered as `coverage.py` says.
        form: what its experts compute.
        response: softplus, l2 or projection.
        fp8: quantise tokens, weights and hidden layers to e4m3, for scoring alone.
    """

    def __init__(self, experts: nn.Module, form: ExpertForm, response: str, fp8: bool = False) -> None:
        self.experts = experts
        self.form = form
        self.response = response
        self.fp8 = fp8
        self._addresses: tuple[int, ...] = ()
        self._weights: ExpertWeights | None = None

    def start(self) -> Callable[..., Tensor]:
        """Begin a pass: the weights are whole, their addresses current and, in FP8, quantised.

        FP8 copies live as long as the result: weights change with every step, and keeping the copies of all layers
        would cost half of the weights' memory again.
        """
        await_parameters(self.experts)
        weights = self._current_weights()
        if self.fp8:
            weights = quantized(weights)

        def score(tokens_GH: Tensor, *vectors_GH: Tensor) -> Tensor:
            vectors = vectors_GH[0].contiguous() if vectors_GH else None
            return fused_responses(tokens_GH.contiguous(), weights, self.response, vectors)

        return score

    def _current_weights(self) -> ExpertWeights:
        """Tables are kept while the addresses stay, which saves two small copies to the GPU."""
        fc1, fc2 = (list(tensors) for tensors in zip(*expert_parameters(self.experts)))
        addresses = tuple(tensor.data_ptr() for tensor in fc1 + fc2)
        if self._weights is None or addresses != self._addresses:
            self._weights = ExpertWeights(self.form, fc1[0].dtype, address_table(fc1), address_table(fc2))
            self._addresses = addresses
        return self._weights


def fused_responses(
    tokens_GH: Tensor,
    weights: ExpertWeights,
    response: str,
    vectors_GH: Tensor | None = None,
    tiles: NarrowTiles | WideTiles | None = None,
) -> Tensor:
    """Responses of all experts to all tokens, fp32 [G, E].

    Args:
        tokens_GH: contiguous, in `weights.precision`.
        vectors_GH: one vector per token, for the projection.
        tiles: other sizes than `tiles.py` chooses; their kind decides between narrow and wide.
    """
    if tokens_GH.shape[0] == 0:
        return torch.zeros(0, weights.num_experts, dtype=torch.float32, device=tokens_GH.device)
    assert (vectors_GH is not None) == (response == "projection"), "vectors belong to the projection"
    tiles = tiles or default_tiles(weights.form, weights.fp8, response)
    tokens, scales = quantize_rows(tokens_GH) if weights.fp8 else (tokens_GH, None)
    if isinstance(tiles, NarrowTiles):
        sums_EG = score_narrow(tokens, scales, weights, response, vectors_GH, tiles)
    else:
        sums_EG = score_wide(tokens, scales, weights, response, vectors_GH, tiles)
    return finish(sums_EG, response, weights.form.hidden)


def default_tiles(form: ExpertForm, fp8: bool, response: str = "softplus") -> NarrowTiles | WideTiles:
    """Whether the hidden layer stays on chip, and the sizes in use."""
    wide = form.ffn > MAX_WIDTH
    sizes = wide_tiles(form.gated, fp8) if wide else narrow_candidates(held_columns(form), fp8)[0]
    return for_projection(sizes, fp8) if response == "projection" else sizes


def finish(sums_EG: Tensor, response: str, hidden: int) -> Tensor:
    """Responses [G, E] from their sums over the output's columns; turned in the same kernel."""
    responses_GE = sums_EG.new_empty(sums_EG.shape[::-1])
    if response == "softplus":
        return torch.div(sums_EG.t(), hidden, out=responses_GE)
    if response == "l2":
        return torch.sqrt(sums_EG.t(), out=responses_GE)
    return responses_GE.copy_(sums_EG.t())


def quantized(weights: ExpertWeights) -> ExpertWeights:
    """The same experts in e4m3, one scale for each output channel."""
    form = weights.form
    fc1, fc1_scales = quantize_matrices(weights.fc1_table, form.fc1_rows, form.hidden, weights.precision)
    fc2, fc2_scales = quantize_matrices(weights.fc2_table, form.hidden, form.ffn, weights.precision)
    return dataclasses.replace(
        weights,
        fc1_table=stacked_table(fc1),
        fc2_table=stacked_table(fc2),
        fc1_scales=fc1_scales,
        fc2_scales=fc2_scales,
        keep=(fc1, fc2),
    )
