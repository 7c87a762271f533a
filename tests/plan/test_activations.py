"""Activations against the published formula, and a competing layer's against what autograd really keeps."""

import math
from typing import Any

import pytest
import torch

from megatron_compete.plan.activations import (
    chunk_activations,
    competing_activations,
    layer_activations,
    output_activations,
    scoring_memory,
    vision_activations,
)
from tests.plan.jobs import DENSE, DENSE_LAYER, MOE_LAYER, VISION, job_of
from tests.ranks import run_rank

GPT = (
    "--swiglu=false --ffn-hidden-size 128 --moe-layer-freq [0,0,0,1] --bf16 --hidden-dropout 0.1 --attention-dropout 0.1 "
    "--attention-backend unfused"
)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_a_dense_layer_is_the_papers(tensor: int) -> None:
    """Korthikanti et al. (arXiv 2205.05198), equation 4: sbh (34 + 5 a s / h) / t with sequence parallelism."""
    job = job_of(f"{GPT} --tensor-model-parallel-size {tensor} --sequence-parallel", tensor)
    sequence, batch, hidden, heads = 32, 2, 32, 4
    expected = sequence * batch * hidden * (34 + 5 * heads * sequence / hidden) / tensor
    assert layer_activations(job, DENSE_LAYER).total == expected


def test_recomputing_the_core_gives_up_its_scores() -> None:
    """The same paper, equation 6: 34 sbh / t remain."""
    job = job_of(f"{GPT} --recompute-granularity selective --recompute-modules core_attn")
    assert chunk_activations(job, (DENSE_LAYER,)).per_microbatch == 32 * 2 * 32 * 34


def test_full_recomputation_leaves_inputs() -> None:
    job = job_of("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 --bf16")
    kept = chunk_activations(job, (MOE_LAYER,) * 4)
    assert kept.per_microbatch == 4 * (32 * 2 * 32 * 2)
    assert kept.live == layer_activations(job, MOE_LAYER).total
    block = job_of("--recompute-granularity full --recompute-method block --recompute-num-layers 1 --bf16")
    assert chunk_activations(block, (MOE_LAYER,) * 4).per_microbatch == 32 * 2 * 32 * 2 + 3 * kept.live


def test_experts_by_hand() -> None:
    """64 tokens, K = 2, H = 32, F = 24 gated, E = 8, bf16; the balance loss keeps the probabilities once more."""
    rows = 64 * 2
    expected = 64 * 8 * (3 * 4 + 1) + rows * (32 * 2 + 4) + rows * (2 * 24 + 24) * 2
    assert layer_activations(job_of("--bf16"), MOE_LAYER).mlp == expected
    sharded = job_of("--bf16 --tensor-model-parallel-size 2 --sequence-parallel", 2)  # both ranks' rows, half of F
    assert layer_activations(sharded, MOE_LAYER).mlp == expected - 64 * 8 * 13 / 2 - rows * (2 * 24 + 24)


def test_a_tower_keeps_its_layers_and_pictures_and_a_projector_what_it_gets() -> None:
    """24 patches of 12 a tile, H = 24 and F = 40, then F = 28 to the decoder; bf16 and fused attention of 2 heads."""
    tower, projector, _ = job_of(f"{VISION} {DENSE} --bf16").parts
    pictures, layer = 24 * 3 * 4 * 4 * 2, 24 * (4 * 24 * 2 + 3 * 24 * 2 + 24 * 2 + 2 * 4 + 2 * 40 * 2)
    assert vision_activations(tower).per_microbatch == pictures + 3 * layer
    assert vision_activations(projector).per_microbatch == 24 * (24 + 2 * 28) * 2


def test_a_frozen_tower_keeps_nothing_and_a_recomputed_one_its_inputs() -> None:
    recompute = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
    once, again = (job_of(f"{VISION} {DENSE} --bf16 {recompute} {flag}").parts for flag in ("", "--recompute-vision"))
    frozen = job_of(f"{VISION} {DENSE} --bf16 --freeze-ViT").parts
    kept = [vision_activations(parts[0]).per_microbatch for parts in (once, again, frozen)]
    assert kept[0] > kept[1] == 24 * 3 * 4 * 4 * 2 + 3 * 24 * 24 * 2 and kept[2] == 0
    assert len({vision_activations(parts[1]).per_microbatch for parts in (once, again, frozen)}) == 1


def test_logits_of_the_last_stage() -> None:
    tokens, vocabulary = 64, 128
    assert output_activations(job_of("--bf16")) == 2 * tokens * 32 * 2 + tokens * vocabulary * (2 + 4)


SHAPE = "--hidden-size 256 --num-experts 8 --moe-router-topk 3 --seq-length 64 --max-position-embeddings 64 --micro-batch-size 4"


def kept_by_a_layer(dtype: torch.dtype, kind: str) -> tuple[int, int]:
    """Bytes alive after the forward pass of the layer of `SHAPE`, at a normal and at a competing step."""
    from benchmarks.memory import LiveStorages
    from tests.moe import layouts

    kept = []
    for rate in (1e-9, 1.0):
        layer = _layer(dtype, rate, kind)
        hidden_states = torch.randn(64, 4, layouts.HIDDEN, dtype=dtype, requires_grad=True)
        with LiveStorages() as live:
            _ = layer(hidden_states)
        kept.append(live.current)
    return kept[0], kept[1]


def scored(dtype: torch.dtype, kind: str) -> int:
    """Most bytes alive at once in the scoring pass of the layer of `SHAPE`."""
    from benchmarks.memory import LiveStorages
    from megatron_compete.moe.scoring import PlainScorer, score_tokens
    from megatron_compete.routing.utility import utility
    from tests.moe import layouts

    layer = _layer(dtype, 1.0)
    tokens_TH, gradients_TH = torch.randn(2, 256, layouts.HIDDEN, dtype=dtype)
    reduction, vectors = (layer.response, ()) if kind == "response" else (utility, (gradients_TH,))
    with LiveStorages() as live:
        scorer = PlainScorer(layer.experts, reduction, layer.groups)
        score_tokens(tokens_TH, scorer, layer.groups, 128, *vectors)
    return live.peak


def _layer(dtype: torch.dtype, rate: float, kind: Any = "response") -> Any:
    from megatron_compete.config import CompeteConfig
    from tests.moe import layouts
    from tests.moe.reference import Weights

    layouts.HIDDEN = 256
    if not torch.distributed.is_initialized():
        layouts.initialize(layouts.Layout())
    precision = {} if dtype == torch.float32 else {"bf16": True, "params_dtype": dtype}
    config = CompeteConfig(rate=rate, max_active_layers=1, kind=kind)
    return layouts.build_layer(
        layouts.Layout(), Weights.random(8, 256, layouts.FFN), config, moe_router_topk=3, hidden_size=256, **precision
    )


@pytest.mark.parametrize("kind", ["response", "utility"])
@pytest.mark.parametrize("flag, dtype", [("", torch.float32), ("--bf16", torch.bfloat16)])
def test_a_competing_layer_keeps_what_autograd_keeps(flag: str, dtype: torch.dtype, kind: str) -> None:
    normal, competing = run_rank(kept_by_a_layer, dtype, kind)
    planned = competing_activations(job_of(f"{SHAPE} {flag} --compete-kind {kind}")).per_microbatch
    assert math.isclose(planned, competing - normal, rel_tol=0.05)


@pytest.mark.parametrize("kind", ["response", "utility"])
@pytest.mark.parametrize("flag, dtype", [("", torch.float32), ("--bf16", torch.bfloat16)])
def test_a_scoring_pass_holds_what_it_allocates(flag: str, dtype: torch.dtype, kind: str) -> None:
    planned = scoring_memory(
        job_of(f"{SHAPE} {flag} --compete-score-chunk-tokens 128 --compete-kind {kind} --compete-score-kernel plain")
    )
    assert math.isclose(planned, run_rank(scored, dtype, kind), rel_tol=0.1)


def test_recomputed_experts_keep_nothing_for_utilities() -> None:
    recomputed = "--compete-kind utility --recompute-granularity selective --recompute-modules moe"
    kept = competing_activations(job_of(recomputed))
    assert (kept.per_microbatch, kept.live) == (0, 64 * 8 * (4 + 1))


def test_recomputed_experts_keep_the_outcome_alone() -> None:
    kept = competing_activations(
        job_of("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1")
    )
    assert kept.per_microbatch == 64 * (2 * 8 * 4 + 2 * 8)
    assert kept.live == competing_activations(job_of()).per_microbatch
