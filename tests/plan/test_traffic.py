"""Planned bytes against those that the real trainer hands to its collectives."""

import pytest
import torch

from megatron_compete.plan.layer_traffic import LayerTraffic
from megatron_compete.plan.parameters import count_parameters
from megatron_compete.plan.traffic import PURPOSES, StepTraffic
from tests.plan.built import ranks_of
from tests.plan.jobs import DENSE, DISTRIBUTED, EXPERTS, STAGES, TENSOR, TIED, VISION, WIDER, job_of
from tests.plan.pictures import SEEING, seeing_ranks
from tests.ranks import run_ranks
from tests.shared import Shared

STEPS = {
    "data": ("", ("dp-cp",), 0.001),
    "distributed optimizer": (f"{DISTRIBUTED} --bf16", ("dp-cp",), 0.001),
    "tensors": (TENSOR, ("tp", "etp"), 0.02),
    "tensors, recomputed": (
        f"{TENSOR} --moe-shared-expert-intermediate-size 64 --recompute-granularity full --recompute-method uniform "
        "--recompute-num-layers 1",
        ("tp", "etp"),
        0.02,
    ),
    "whole experts": (f"{TENSOR} {EXPERTS} --expert-tensor-parallel-size 1", ("tp", "ep"), 0.05),
    "stages": (f"{STAGES} {TIED}", ("pp", "embedding"), 0.001),
    "chunks": (f"{STAGES} --num-virtual-stages-per-pipeline-rank 2", ("pp",), 0.001),
    "dense, stages, tied": (f"{STAGES} {TIED} {DENSE}", ("pp", "embedding"), 0.001),
    "dense, tensors": (f"--tensor-model-parallel-size 2 {DENSE}", ("tp",), 0.02),
    "dense, bf16, distributed": (f"{DISTRIBUTED} --bf16 {DENSE}", ("dp-cp",), 0.001),
    "experts": (EXPERTS, ("ep", "dp-cp"), 0.05),
    "experts gathered": (f"{EXPERTS} --moe-token-dispatcher-type allgather", ("ep", "dp-cp"), 0.05),
}
"""Flags, what travels, and how close the plan is: rows are routed unevenly in a real step."""


@pytest.mark.parametrize("name", STEPS)
def test_a_step_sends_what_is_planned(name: str, shared: Shared) -> None:
    flags, purposes, tolerance = STEPS[name]
    job = job_of(f"{WIDER} {flags}", 2)
    planned = StepTraffic(job, count_parameters(job)).all()
    assert tuple(kind.purpose for kind in planned) == purposes
    for held in shared(ranks_of, f"{WIDER} {flags}", 2):
        sent = sum(kind.sent_P[held.pipeline_rank] for kind in planned)
        assert sent == pytest.approx(held.sent_bytes, rel=tolerance)


SEEN = {
    "experts in tower and projector": EXPERTS,
    "projector behind a frozen tower": f"{EXPERTS} --experts-in projector --freeze-ViT --projector-ffn-hidden-size 16",
}


@pytest.mark.parametrize("name", SEEN)
def test_a_vision_language_models_step_sends_what_is_planned(name: str, shared: Shared) -> None:
    """Rows as wide as the tower go to the projector's experts, rows as wide as the decoder come back; gradients of the
    first do not travel where nothing before them is trained."""
    job = job_of(f"{SEEING} {SEEN[name]}", 2)
    planned = StepTraffic(job, count_parameters(job)).all()
    assert tuple(kind.purpose for kind in planned) == ("ep", "dp-cp")
    sent = [held.sent_bytes for held in shared(seeing_ranks, SEEN[name], 2)]
    assert sum(float(kind.sent_P[0]) for kind in planned) == pytest.approx(sum(sent) / 2, rel=0.02)


def scored(flags: str, expert: int) -> int:
    """Bytes that a rank sends for one competing layer's scoring pass, and its backward pass if that runs it again."""
    from benchmarks.traffic import SentBytes
    from megatron_compete.config import CompeteConfig
    from megatron_compete.moe.response_gradients import AllResponses, Recomputation
    from megatron_compete.moe.scoring import PlainScorer, score_tokens
    from megatron_compete.routing.utility import utility
    from tests.moe import layouts
    from tests.moe.reference import Weights

    layout = layouts.Layout(world=2, tp=2, ep=expert, etp=2 // expert)
    layouts.initialize(layout)
    config = CompeteConfig(rate=1.0, max_active_layers=1)
    weights = Weights.random(layouts.EXPERTS, layouts.HIDDEN, layouts.FFN)
    layer = layouts.build_layer(layout, weights, config)
    tokens_TH = torch.randn(32, layouts.HIDDEN)
    with SentBytes() as sent:
        if "utility" in flags:
            score_tokens(tokens_TH, PlainScorer(layer.experts, utility, layer.groups), layer.groups, 16, tokens_TH)
            return sent.total
        scorer = PlainScorer(layer.experts, layer.response, layer.groups)
        responses_TE = score_tokens(tokens_TH, scorer, layer.groups, 16)
        if "all" in flags:
            plan = Recomputation(layer.experts, layer.response, layer.groups, 16)
            tokens_TH.requires_grad_()
            AllResponses.apply(plan, responses_TE, tokens_TH, *layer.experts.parameters()).sum().backward()
    return sent.total


@pytest.mark.parametrize("flags", ["", "--compete-response-gradients all", "--compete-kind utility"])
@pytest.mark.parametrize("expert", [1, 2])
def test_a_scoring_pass_sends_what_is_planned(flags: str, expert: int) -> None:
    """To the byte, but for the counter of tokens (an all-reduce of 8 bytes) in each pass."""
    job = job_of(
        f"--hidden-size 16 --num-experts 8 {TENSOR} --expert-model-parallel-size {expert} --expert-tensor-parallel-size "
        f"{2 // expert} --no-gradient-accumulation-fusion {flags}",
        2,
    )
    planned = sum(LayerTraffic(job).competing().total.values())
    counters = 8 * (2 if "all" in flags else 1)
    assert run_ranks(2, scored, flags, expert) == [planned + counters] * 2


def scored_projection() -> int:
    """Bytes that a rank sends for the scoring pass of a projector's 24 tokens, from 128 wide to 96."""
    from benchmarks.traffic import SentBytes
    from megatron_compete.moe.scoring import PlainScorer, score_tokens
    from tests.vlm.models import ALL_COMPETE, SIGLIP, initialize
    from tests.vlm.test_projector import layer_of

    initialize(ep=2)
    layer = layer_of("projector", SIGLIP, ALL_COMPETE)
    with SentBytes() as sent:
        score_tokens(torch.randn(24, 128), PlainScorer(layer.experts, layer.response, layer.groups), layer.groups, 16)
    return sent.total


def test_a_projectors_scoring_pass_sends_what_is_planned() -> None:
    """To the byte, but for the counter of tokens: tokens are as wide as the tower, answers stay where they are."""
    job = job_of(f"{VISION} {EXPERTS} --vision-hidden-size 128 --hidden-size 96 --num-experts 4", 2)
    projector = job.parts[1]
    assert (projector.competing_tokens, projector.expert_width, projector.expert_output) == (24, 128, 96)
    planned = sum(LayerTraffic(projector).competing().total.values())
    assert run_ranks(2, scored_projection) == [planned + 8] * 2


def test_competition_counts_at_its_rate() -> None:
    job = job_of("--expert-model-parallel-size 2 --compete-rate 0.25", 2)
    (competition,) = (kind for kind in StepTraffic(job, count_parameters(job)).all() if kind.purpose == "competition")
    layer = sum(LayerTraffic(job).competing().total.values())
    assert competition.sent_P.tolist() == [0.25 * 4 * job.microbatches * layer]


def test_every_purpose_is_explained() -> None:
    job = job_of(f"{TENSOR} {STAGES} --expert-model-parallel-size 2 --global-batch-size 16", 8)
    for kind in StepTraffic(job, count_parameters(job)).all():
        assert PURPOSES[kind.purpose]
        assert kind.within + kind.across == pytest.approx(kind.most)
