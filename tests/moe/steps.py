"""A training step of one layer by Megatron's own schedule and data parallelism, and the same step by the reference.

The layer sits in `DistributedDataParallel`, `forward_backward_no_pipelining` runs its microbatches and
`finalize_model_grads` finishes the gradients, so that every factor by which Megatron scales losses and gradients over
tensor, context and data parallel ranks is Megatron's, not this test's.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_compete.common.comparison import largest_difference
from megatron_compete.config import CompeteConfig
from megatron_compete.routing.sample import sample_positions
from megatron_compete.schedule import CompetitionSchedule
from tests.moe import layouts, reference
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, WINNERS, Layout, Shard, parameters
from tests.moe.reference import Weights
from tests.ranks import run_ranks


@dataclass(frozen=True)
class Microbatch:
    """Tokens and the cotangents of their outputs, both [S, B, H]."""

    tokens: Tensor
    cotangents: Tensor
    padding: Tensor | None = None
    """[B, S], as Megatron's GPTModel hands it over: True for padding."""

    @classmethod
    def random(cls, sequence: int, batch: int, seed: int) -> "Microbatch":
        random = torch.Generator().manual_seed(seed)
        return cls(*torch.randn(2, sequence, batch, HIDDEN, generator=random))

    def shard(self, index: int, count: int) -> "Microbatch":
        """The `index`-th of `count` equal parts of the sequence."""
        padding = None if self.padding is None else self.padding.chunk(count, dim=1)[index].contiguous()
        tokens, cotangents = (whole.chunk(count)[index].contiguous() for whole in (self.tokens, self.cotangents))
        return Microbatch(tokens, cotangents, padding)

    def of_context(self, rank: int, size: int) -> "Microbatch":
        """The part of a context parallel rank."""
        padding = None if self.padding is None else zigzag(self.padding, rank, size, dim=1)
        return Microbatch(zigzag(self.tokens, rank, size), zigzag(self.cotangents, rank, size), padding)

    def flat(self, whole: Tensor) -> Tensor:
        return whole.reshape(-1, HIDDEN)

    @property
    def valid_T(self) -> Tensor:
        if self.padding is None:
            return torch.ones(self.tokens.shape[:2].numel(), dtype=torch.bool)
        return ~self.padding.T.reshape(-1)

    def to(self, dtype: torch.dtype) -> "Microbatch":
        return replace(self, tokens=self.tokens.to(dtype), cotangents=self.cotangents.to(dtype))


def zigzag(whole: Tensor, rank: int, size: int, dim: int = 0) -> Tensor:
    """A context parallel rank's chunks of a sequence, one from either end (upstream: `get_batch_on_this_cp_rank`)."""
    chunks = whole.chunk(2 * size, dim)
    return whole if size == 1 else torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], dim)


Batch = list[list[Microbatch]]
"""The microbatches of each data parallel rank."""


@dataclass(frozen=True)
class Result:
    """What a rank, or the reference, has to show for a step; one entry per microbatch in the lists."""

    outputs: list[Tensor]
    token_grads: list[Tensor]
    weight_grads: Any
    """By name of parameter on a rank, `Weights` from the reference."""
    shard: Shard | None = None


def random_batch(layout: Layout, sequence: int, batch: int, microbatches: int = 2) -> Batch:
    return [
        [Microbatch.random(sequence, batch, seed=100 * rank + index) for index in range(microbatches)]
        for rank in range(layout.dp)
    ]


def shard_of_rank(whole: Microbatch, layout: Layout, rank: int) -> Microbatch:
    """A rank's part of its microbatch: split along the sequence over context, then tensor parallel ranks."""
    _, context, tensor = layout.coordinates(rank)
    return whole.of_context(context, layout.cp).shard(tensor, layout.tp)


def trainable(layer: Any, finalize: Callable[..., None] | None = None) -> Any:
    """The layer as the trainer would hold it: a model with one input, wrapped for data parallelism."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.enums import ModelType
    from megatron.core.transformer.module import MegatronModule

    class OneLayer(MegatronModule):
        def __init__(self) -> None:
            super().__init__(layer.config)
            self.layer = layer
            self.model_type = ModelType.encoder_or_decoder

        def set_input_tensor(self, tensor: object) -> None: ...

        def forward(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
            output, bias = self.layer(tokens, padding_mask=padding)
            assert bias is None
            return output

    layer.config.finalize_model_grads_func = finalize or finalize_model_grads
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    return DistributedDataParallel(layer.config, ddp, OneLayer())


def train_step(layer: Any, layout: Layout, batch: Batch, finalize: Callable[..., None] | None = None) -> Result:
    """Forward and backward pass of all microbatches on this rank, and the finished gradients.

    Args:
        finalize: in place of Megatron's `finalize_model_grads`.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    model = trainable(layer, finalize)
    rank = torch.distributed.get_rank()
    data, context, _ = layout.coordinates(rank)
    counted = [int(whole.of_context(context, layout.cp).valid_T.sum()) for whole in batch[data]]
    mine = [shard_of_rank(whole, layout, rank) for whole in batch[data]]
    for microbatch in mine:
        microbatch.tokens.requires_grad_()
    outputs: list[Tensor] = []

    def forward_step(microbatches: Iterator[tuple[Microbatch, int]], model: Any) -> tuple[Tensor, Callable]:
        microbatch, num_tokens = next(microbatches)
        output = model(microbatch.tokens, microbatch.padding)
        outputs.append(output.detach().clone())
        return output, lambda output: (
            (output.float() * microbatch.cotangents.float()).sum(), torch.tensor(num_tokens), {},
        )  # fmt: skip

    get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=zip(mine, counted), model=[model], num_microbatches=len(mine),
        seq_length=1, micro_batch_size=1, forward_only=False,
    )  # fmt: skip
    grads = {name: parameter.main_grad.clone() for name, parameter in parameters(layer).items()}
    return Result(outputs, [microbatch.tokens.grad for microbatch in mine], grads, Shard.of(layer))


Step = Callable[..., tuple[Tensor, Tensor, Tensor]]


def reference_step(
    batch: Batch,
    whole: Weights,
    layout: Layout,
    config: CompeteConfig,
    step: Step = reference.competing_step,
    top_k: int = WINNERS,
) -> list[Result]:
    """The step in fp64, by data parallel rank; token gradients as a rank sees them, before data parallel scaling."""
    weights = whole.double()
    num_valid = sum(int(microbatch.valid_T.sum()) for microbatches in batch for microbatch in microbatches)
    results, total = [], torch.zeros((), dtype=torch.float64)
    for microbatches in batch:
        result = Result([], [], None)
        for microbatch in microbatches:
            tokens = microbatch.tokens.double().requires_grad_()
            sampled = {"length": len(tokens)} if config is not None and config.token_fraction < 1 else {}
            output, loss, _ = step(tokens.reshape(-1, HIDDEN), weights, top_k, config, microbatch.valid_T, **sampled)
            result.outputs.append(output.view_as(tokens))
            result.token_grads.append(tokens)
            share = (
                int(microbatch.valid_T.sum()) / num_valid if layout.per_token else 1 / (layout.dp * len(microbatches))
            )
            total = total + share * (_task_loss(result.outputs[-1], microbatch, layout) + loss)
        results.append(result)
    total.backward()
    seen = num_valid if layout.per_token else layout.dp * layout.cp
    return [
        replace(result, token_grads=[t.grad * seen for t in result.token_grads], weight_grads=weights.grads())  # type: ignore[operator]
        for result in results
    ]


def _task_loss(output: Tensor, microbatch: Microbatch, layout: Layout) -> Tensor:
    """Mean over tokens of output times cotangent; over context parallel ranks a mean of means, as Megatron's."""
    products = (output * microbatch.cotangents).sum(-1)
    if layout.per_token:
        return products.sum() / max(int(microbatch.valid_T.sum()), 1)
    means = []
    for rank in range(layout.cp):
        valid = microbatch.of_context(rank, layout.cp).valid_T.sum()
        means.append(zigzag(products, rank, layout.cp).sum() / valid.clamp_min(1))
    return sum(means) / layout.cp  # type: ignore[return-value]


def assert_equal_to_reference(
    per_rank: list[Result], by_data_rank: list[Result], layout: Layout, tolerance: float = 1e-5
) -> None:
    """Outputs, token gradients and weight gradients of every rank, relative to each tensor's largest value."""
    scales = {}
    for name, expected in by_data_rank[0].weight_grads.__dict__.items():
        scales[name] = expected.abs().max() if isinstance(expected, Tensor) else None
    for rank, actual in enumerate(per_rank):
        expected = by_data_rank[layout.coordinates(rank)[0]]
        for kind in ("outputs", "token_grads"):
            for ours, theirs in zip(getattr(actual, kind), getattr(expected, kind), strict=True):
                part = shard_of_rank(Microbatch(theirs, theirs), layout, rank).tokens
                assert_close(ours, part, theirs.abs().max() if theirs.numel() else 0, tolerance, f"{kind} rank {rank}")
        assert actual.shard is not None
        for name, part in actual.shard.share(expected.weight_grads).items():
            scale = scales[_whole_name(name)]
            assert_close(actual.weight_grads[name], part, scale, tolerance, f"gradient of {name} rank {rank}")


@dataclass(frozen=True)
class Case:
    """A kind of step: settings, and whether the layer competes."""

    config: CompeteConfig
    competes: bool = True
    winners: tuple[int, ...] | None = None
    """The experts that must win every token, where a test has arranged for that."""
    router: reference.Router = reference.TOP_K
    """The settings that the test hands Megatron as overrides."""

    def current_step(self) -> int:
        """The first step at which the one layer competes, or does not."""
        schedule = CompetitionSchedule(1, self.config.rate, max_active=1, seed=self.config.seed)
        return next(step for step in range(1000) if schedule.is_active(step, 1) == self.competes)

    def sampled(self, length: int, sequences: int) -> Tensor:
        """Which tokens compete at a step of a sample, bool [T]: the same positions in all sequences."""
        positions = sample_positions(
            self.config.token_fraction, length, seed=self.config.seed, step=self.current_step(), layer_number=1
        )
        sampled = torch.zeros(length, sequences, dtype=torch.bool)
        sampled[positions] = True
        return sampled.view(-1)

    def reference(self, tokens: Tensor, *args: Any, length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The step by the formulas.

        Args:
            length: positions of a sequence, where a sample of them competes.
        """
        kinds = {"response": reference.competing_step, "utility": reference.utility_step}
        step = kinds[self.config.kind] if self.competes else reference.normal_step
        if self.competes and length is not None:
            sampled = self.sampled(length, len(tokens) // max(length, 1))
            step = functools.partial(reference.sampled_step, sampled)
        output, loss, chosen = step(tokens, *args, router=self.router)
        assert self.winners is None or (chosen == torch.tensor(self.winners)).all()
        return output, loss, chosen


def train_on_rank(
    layout: Layout, batch: Batch, cases: dict[str, Case], weights: Weights, overrides: dict[str, Any]
) -> dict[str, Result]:
    layouts.initialize(layout)
    results = {}
    for name, case in cases.items():
        layer = layouts.build_layer(layout, weights, case.config, case.current_step, **overrides)
        if case.router.bias is not None:
            layer.router.expert_bias.copy_(torch.tensor(case.router.bias))
        results[name] = train_step(layer, layout, batch)
    return results


def check(
    layout: Layout,
    batch: Batch,
    cases: dict[str, Case],
    weights: Weights | None = None,
    on_rank: Callable[..., dict[str, Result]] = train_on_rank,
    **overrides: Any,
) -> None:
    """All cases, one after another on the same ranks, against the reference. `overrides` are Megatron's settings."""
    weights = weights or Weights.random(EXPERTS, HIDDEN, FFN)
    per_rank = run_ranks(layout.world, on_rank, layout, batch, cases, weights, overrides)
    for name, case in cases.items():
        top_k = overrides.get("moe_router_topk", WINNERS)
        expected = reference_step(batch, weights, layout, case.config, case.reference, top_k)
        try:
            assert_equal_to_reference([results[name] for results in per_rank], expected, layout)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def _whole_name(name: str) -> str:
    """`expert3.fc1` -> `fc1`, `shared.fc1` -> `shared_fc1`."""
    owner, _, weight = name.partition(".")
    return f"shared_{weight}" if owner == "shared" else weight or owner


def assert_close(actual: Tensor, expected: Tensor, scale: Any, tolerance: float, what: str) -> None:
    """Largest difference below `tolerance` of `scale`, the largest value of the whole tensor, of which a rank may have none."""
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    if actual.numel() == 0:
        return
    difference = largest_difference(actual.double(), expected.double(), what)
    assert difference <= tolerance * scale, f"{what}: off by {difference / scale:.2e} of the largest value {scale:.2e}"
