"""A dense model as a mixture of experts that computes the same: every expert starts as the dense MLP, or a slice of it.

Sparse upcycling (Komatsuzaki et al., arXiv 2212.05055) copies the MLP into E experts. A token's K experts then answer
alike, and their weights, a softmax over the K chosen, sum to 1: whatever the router says, the layer's output is the
dense MLP's.

With granularity G (He et al., arXiv 2410.07524) an expert holds one of G slices of the MLP's width, and E / G copies
hold every slice. Expert e has slice e % G of copy e // G. The dense output is the sum over slices, so a token needs
every slice equally often. Their virtual groups see to that: the G experts of a copy start with the same row of the
router, so they have the same logit, and for K = G * n the top K are n whole copies. With the weights w_c / G of the G
experts of copy c, which sum to 1 over all, the layer's output is

    sum over copies c and slices s of  w_c / G * slice_s(x)  =  MLP(x) / G,

and linear_fc2 is multiplied by G. That is exact where G is a power of two. (Megatron's --moe-use-upcycling, which
follows the same paper in a running trainer, spreads the factor over linear_fc1 as well; a gated MLP is not
proportional to that, so for G > 1 its function changes.)
"""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.megatron_writer import Chunk
from megatron_compete.checkpoint.options import Upcycling
from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig

LAYER = "decoder.layers."
NORM_NAMES = {
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.layer_norm_bias": "pre_mlp_layernorm.bias",
}
"""Keys of the MLP's norm in a dense layer (in a MoE layer without Transformer Engine too), and in a MoE layer with it."""
GATED = ("swiglu", "quick_geglu")


def upcycle(arguments: Mapping[str, Any], chunks: Sequence[Chunk], how: Upcycling) -> tuple[dict[str, Any], list[Chunk]]:  # fmt: skip
    """Arguments and tensors of the mixture that `how` makes of a dense model.

    Args:
        arguments: the dense model's, by Megatron's names.
        chunks: its tensors as Megatron stores them, layers stacked.
    Raises:
        CompeteError: not a dense model, or one whose MLPs cannot be cut so.
    """
    how.check()
    _check_dense(arguments, chunks, how)
    gated = any(arguments.get(name) for name in GATED)
    return _moe_arguments(arguments, how), list(_moe_chunks(chunks, how, gated))


def _check_dense(arguments: Mapping[str, Any], chunks: Sequence[Chunk], how: Upcycling) -> None:
    if arguments.get("num_experts"):
        raise CompeteError(
            f"the checkpoint has --num-experts {arguments['num_experts']} already: only dense models are upcycled"
        )
    if arguments.get("add_bias_linear", True):
        raise CompeteError(
            "the checkpoint's MLPs have biases, which experts have not: only models with --disable-bias-linear"
        )
    width = dense_width(arguments)
    if width % how.granularity:
        raise CompeteError(f"--granularity {how.granularity} does not divide the MLP's width {width}")
    matrices = [
        chunk for chunk in chunks if _name_in_layer(chunk) in ("mlp.linear_fc1.weight", "mlp.linear_fc2.weight")
    ]
    if len(matrices) != 2 * int(arguments["num_layers"]):
        raise CompeteError(
            f"the checkpoint has {len(matrices)} MLP matrices, not 2 for each of {arguments['num_layers']} layers"
        )
    power_of_two = how.granularity & (how.granularity - 1) == 0
    narrow = [chunk.dtype for chunk in matrices if chunk.dtype.itemsize < 4]
    if narrow and not power_of_two and not how.inexact:
        raise CompeteError(
            f"--granularity {how.granularity} scales {str(narrow[0]).removeprefix('torch.')} weights by what is no power of two, "
            "which rounds: take 2, 4, 8, ..., or give --inexact"
        )


def dense_width(arguments: Mapping[str, Any]) -> int:
    """Width of the dense MLP."""
    return int(arguments.get("ffn_hidden_size") or 4 * int(arguments["hidden_size"]))


def _moe_arguments(arguments: Mapping[str, Any], how: Upcycling) -> dict[str, Any]:
    """The mixture's arguments. The diversity loss is on: experts that start alike have to part."""
    return {
        **arguments,
        "num_experts": how.experts,
        "moe_router_topk": how.k,
        "moe_ffn_hidden_size": dense_width(arguments) // how.granularity,
        "moe_layer_freq": 1,
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": False,
        "moe_router_topk_scaling_factor": None,
        "moe_shared_expert_intermediate_size": None,
        "moe_token_dispatcher_type": "alltoall",
        # In bf16 the logits of two copies tie often, and then a token may get two of one slice and none of another.
        "moe_router_dtype": "fp32",
        "compete_diversity_coeff": arguments.get("compete_diversity_coeff") or CompeteConfig().diversity_coeff,
    }


def _name_in_layer(chunk: Chunk) -> str:
    """The key behind `decoder.layers.` of a stacked layer tensor; empty for other keys."""
    found = re.fullmatch(re.escape(LAYER) + r"(?!\d)(.+)", chunk.key)
    return found[1] if found else ""


def _moe_chunks(chunks: Iterable[Chunk], how: Upcycling, gated: bool) -> Iterator[Chunk]:
    norms: set[tuple[str, tuple[int, ...]]] = set()
    for chunk in chunks:
        name = _name_in_layer(chunk)
        if name == "mlp.linear_fc1.weight":
            yield _router(chunk, how)
            yield from _experts(chunk, how, gated)
        elif name == "mlp.linear_fc2.weight":
            yield from _experts(chunk, how, gated)
        elif name in NORM_NAMES or name in NORM_NAMES.values():
            dense_name = {moe: dense for dense, moe in NORM_NAMES.items()}.get(name, name)
            for key in (LAYER + dense_name, LAYER + NORM_NAMES[dense_name]):
                if (key, chunk.index) not in norms:
                    norms.add((key, chunk.index))
                    yield replace(chunk, key=key)
        else:
            yield chunk


def _experts(chunk: Chunk, how: Upcycling, gated: bool) -> Iterator[Chunk]:
    """The chunks of all experts from the dense matrix of a layer, which is read once for all of them."""
    key = LAYER + "mlp.experts.experts." + _name_in_layer(chunk).removeprefix("mlp.")
    dense = lru_cache(maxsize=1)(chunk.make)
    first = chunk.key.endswith("linear_fc1.weight")
    rows, columns = chunk.shape
    shape = (rows // how.granularity, columns) if first else (rows, columns // how.granularity)
    for expert in range(how.experts):
        index = (*chunk.index, expert)
        yield Chunk(
            key, index, (*chunk.stack, how.experts), shape, chunk.dtype, _expert(dense, how, first, gated, key, index)
        )


def _expert(dense: Callable[[], Tensor], how: Upcycling, first: bool, gated: bool, key: str, index: tuple[int, ...]) -> Callable[[], Tensor]:  # fmt: skip
    copy, slice_ = divmod(index[-1], how.granularity)

    def make() -> Tensor:
        matrix = (
            fc1_slice(dense(), slice_, how.granularity, gated) if first else fc2_slice(dense(), slice_, how.granularity)
        )
        return _with_noise(matrix, how.noise, f"{how.seed} {key} {index}") if how.noise and copy else matrix

    return make


def fc1_slice(dense: Tensor, number: int, granularity: int, gated: bool) -> Tensor:
    """Rows of slice `number` out of `granularity` of linear_fc1 [F, H], or [2F, H] if gated: gate's rows, then up's."""
    halves = dense.chunk(2) if gated else (dense,)
    return torch.cat([half.chunk(granularity)[number] for half in halves])


def fc2_slice(dense: Tensor, number: int, granularity: int) -> Tensor:
    """Columns of slice `number` of linear_fc2 [H, F], times `granularity`: see the module's head."""
    return dense.chunk(granularity, dim=1)[number] * granularity


def _with_noise(matrix: Tensor, noise: float, name: str) -> Tensor:
    """`matrix` plus Gaussian noise of `noise` times its own standard deviation; the same for the same name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = matrix.float()
    return (values + torch.randn(values.shape, generator=generator) * (noise * values.std())).to(matrix.dtype)


def _router(fc1: Chunk, how: Upcycling) -> Chunk:
    """The router of the layer whose linear_fc1 is given."""
    hidden, key = fc1.shape[1], LAYER + "mlp.router.weight"

    def make() -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{how.seed} {key} {fc1.index}".encode()))
        return router_rows(how, hidden, generator).to(fc1.dtype)

    return Chunk(key, fc1.index, fc1.stack, (how.experts, hidden), fc1.dtype, make)


def router_rows(how: Upcycling, hidden: int, generator: torch.Generator) -> Tensor:
    """The router's weight [E, H]: a row for each copy of the MLP, given to all G experts of the copy."""
    rows = torch.zeros(how.experts // how.granularity, hidden)
    if how.router_init == "normal":
        rows.normal_(std=how.router_std, generator=generator)
    elif how.router_init == "orthogonal":
        torch.nn.init.orthogonal_(rows, gain=how.router_std * hidden**0.5, generator=generator)
    return rows.repeat_interleave(how.granularity, dim=0)
