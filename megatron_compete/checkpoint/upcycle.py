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

MLPs of vision towers and projectors have biases. That of linear_fc1 is cut as its rows are. That of linear_fc2 goes whole
and unscaled into every expert: an expert's weight is that of its output, bias included, and the weights sum to 1, so it
counts once.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from megatron_compete.checkpoint.megatron_writer import Chunk
from megatron_compete.checkpoint.options import Upcycling
from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig

LAYER = "decoder.layers."
MLP = LAYER + "mlp."
OF_EXPERTS = ("linear_fc1.weight", "linear_fc1.bias", "linear_fc2.weight", "linear_fc2.bias")
"""Of a dense MLP, as every expert has them."""
NORM_NAMES = {
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
    "mlp.linear_fc1.layer_norm_bias": "pre_mlp_layernorm.bias",
}
"""Keys of the MLP's norm in a dense layer (in a MoE layer without Transformer Engine too), and in a MoE layer with it."""
GATED = ("swiglu", "quick_geglu")


def upcycle(arguments: Mapping[str, Any], chunks: Sequence[Chunk], how: Upcycling) -> tuple[dict[str, Any], list[Chunk]]:  # fmt: skip
    """Arguments and tensors of the mixture that `how` makes of a dense language model.

    Args:
        arguments: the dense model's, by Megatron's names.
        chunks: its tensors as Megatron stores them, layers stacked.
    Raises:
        CompeteError: not a dense model, or one whose MLPs cannot be cut so.
    """
    how.check()
    _check_dense(arguments)
    gated = any(arguments.get(name) for name in GATED)
    made = upcycle_mlps(chunks, how, dense_width(arguments), int(arguments["num_layers"]), gated)
    return _moe_arguments(arguments, how), made


def upcycle_mlps(
    chunks: Sequence[Chunk], how: Upcycling, width: int, layers: int, gated: bool, mlp: str = MLP, seed: str = ""
) -> list[Chunk]:
    """The tensors of a model, or of a part of one, whose MLPs have become mixtures.

    Args:
        width: of the dense MLPs.
        layers: how many MLPs there are.
        mlp: what the MLPs' keys begin with; those of a part that is one MLP begin with nothing.
        seed: sets the random numbers apart from those of another part with the same keys.
    Raises:
        CompeteError: MLPs that cannot be cut so.
    """
    _check_mlps(chunks, how, width, layers, mlp)
    return list(_moe_chunks(chunks, how, gated, mlp, seed))


def _check_dense(arguments: Mapping[str, Any]) -> None:
    if arguments.get("num_experts"):
        raise CompeteError(
            f"the checkpoint has --num-experts {arguments['num_experts']} already: only dense models are upcycled"
        )
    if arguments.get("add_bias_linear", True):
        raise CompeteError(
            "the checkpoint's MLPs have biases, which no export of a mixture has: only models with --disable-bias-linear"
        )


def _check_mlps(chunks: Sequence[Chunk], how: Upcycling, width: int, layers: int, mlp: str) -> None:
    if width % how.granularity:
        raise CompeteError(f"--granularity {how.granularity} does not divide the MLP's width {width}")
    matrices = [chunk for chunk in chunks if chunk.key in (f"{mlp}linear_fc1.weight", f"{mlp}linear_fc2.weight")]
    if len(matrices) != 2 * layers:
        raise CompeteError(f"the checkpoint has {len(matrices)} MLP matrices, not 2 for each of {layers} layers")
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


def routing_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How an upcycled mixture routes. The diversity loss is on: experts that start alike have to part."""
    return {
        "moe_router_score_function": "softmax",
        "moe_router_pre_softmax": False,
        "moe_router_topk_scaling_factor": None,
        "moe_token_dispatcher_type": "alltoall",
        # In bf16 the logits of two copies tie often, and then a token may get two of one slice and none of another.
        "moe_router_dtype": "fp32",
        "compete_diversity_coeff": arguments.get("compete_diversity_coeff") or CompeteConfig().diversity_coeff,
    }


def _moe_arguments(arguments: Mapping[str, Any], how: Upcycling) -> dict[str, Any]:
    """The mixture's arguments."""
    return {
        **arguments,
        "num_experts": how.experts,
        "moe_router_topk": how.k,
        "moe_ffn_hidden_size": dense_width(arguments) // how.granularity,
        "moe_layer_freq": 1,
        "moe_shared_expert_intermediate_size": None,
        **routing_arguments(arguments),
    }


def _moe_chunks(chunks: Iterable[Chunk], how: Upcycling, gated: bool, mlp: str, seed: str) -> Iterator[Chunk]:
    norms: set[tuple[str, tuple[int, ...]]] = set()
    for chunk in chunks:
        name = chunk.key.removeprefix(LAYER)
        if chunk.key == f"{mlp}linear_fc1.weight":
            yield _router(chunk, how, mlp, seed)
        if chunk.key in {f"{mlp}{one}" for one in OF_EXPERTS}:
            yield from _experts(chunk, how, gated, mlp, seed)
        elif name in NORM_NAMES or name in NORM_NAMES.values():
            dense_name = {moe: dense for dense, moe in NORM_NAMES.items()}.get(name, name)
            for key in (LAYER + dense_name, LAYER + NORM_NAMES[dense_name]):
                if (key, chunk.index) not in norms:
                    norms.add((key, chunk.index))
                    yield replace(chunk, key=key)
        else:
            yield chunk


def _experts(chunk: Chunk, how: Upcycling, gated: bool, mlp: str, seed: str) -> Iterator[Chunk]:
    """The chunks of all experts from the dense tensor of a layer, which is read once for all of them."""
    name = chunk.key.removeprefix(mlp)
    key = f"{mlp}experts.experts.{name}"
    dense = lru_cache(maxsize=1)(chunk.make)
    for expert in range(how.experts):
        copy, slice_ = divmod(expert, how.granularity)
        cut = partial(expert_tensor, name, slice_, how.granularity, gated)
        shape = tuple(cut(torch.empty(chunk.shape, device="meta")).shape)
        index = (*chunk.index, expert)
        noise = how.noise if copy and name.endswith("weight") else 0.0
        make = partial(_make, dense, cut, noise, f"{how.seed} {seed}{key} {index}")
        yield Chunk(key, index, (*chunk.stack, how.experts), shape, chunk.dtype, make)


def _make(dense: Callable[[], Tensor], cut: Callable[[Tensor], Tensor], noise: float, name: str) -> Tensor:
    tensor = cut(dense())
    return _with_noise(tensor, noise, name) if noise else tensor


def expert_tensor(name: str, number: int, granularity: int, gated: bool, dense: Tensor) -> Tensor:
    """What slice `number` out of `granularity` of a dense MLP has as its tensor `name`."""
    if name.startswith("linear_fc1."):
        return fc1_slice(dense, number, granularity, gated)
    return fc2_slice(dense, number, granularity) if name == "linear_fc2.weight" else dense


def fc1_slice(dense: Tensor, number: int, granularity: int, gated: bool) -> Tensor:
    """Rows of slice `number` out of `granularity` of linear_fc1 [F, H], or [2F, H] if gated: gate's rows, then up's; of its
    bias alike."""
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


def _router(fc1: Chunk, how: Upcycling, mlp: str, seed: str) -> Chunk:
    """The router of the layer whose linear_fc1 is given."""
    hidden, key = fc1.shape[1], f"{mlp}router.weight"

    def make() -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{how.seed} {seed}{key} {fc1.index}".encode()))
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
