"""Each rule is broken once: our line, and that Megatron trips over the same thing."""

import re

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import Recipe
from megatron_compete.layout.rules import BrokenRules
from megatron_compete.training import job_check
from tests.plan.built import trained
from tests.plan.jobs import STAGES, TENSOR, job_of, recipe_of
from tests.ranks import run_ranks

WIDE = "--num-attention-heads 6 --hidden-size 48"
CHUNKS = f"{STAGES} --num-virtual-stages-per-pipeline-rank 2"

ARGUMENTS = {
    "world": (6, "--pipeline-model-parallel-size 4", "6 GPUs do not divide by tensor * pipeline * context parallel size = 1 * 4 * 1 = 4: give 8"),
    "experts": (4, "--num-experts 6 --expert-model-parallel-size 4", "--num-experts 6 does not divide over --expert-model-parallel-size 4"),
    "one winner": (1, "--moe-router-topk 1", "--moe-router-topk 1 needs --moe-router-pre-softmax"),
    "biases": (2, f"{TENSOR} --disable-bias-linear=false", "experts with biases cannot be split"),
    "heads": (4, f"{WIDE} --tensor-model-parallel-size 4 --sequence-parallel", "--num-attention-heads 6 does not divide over --tensor-model-parallel-size 4"),
    "groups": (2, f"{WIDE} {TENSOR} --group-query-attention --num-query-groups 3", "--num-query-groups 3 does not divide over --tensor-model-parallel-size 2"),
    "head size": (1, "--num-attention-heads 5", "--hidden-size 32 is no multiple of --num-attention-heads 5"),
    "context": (2, "--context-parallel-size 2 --seq-length 30", "--seq-length 30 does not divide by 2 * --context-parallel-size 2: give 32"),
    "positions": (1, "--seq-length 64", "--max-position-embeddings 32 is below --seq-length 64"),
    "batch": (2, "--global-batch-size 6", "--global-batch-size 6 does not divide by micro batch * data parallel size = 2 * 2 = 4: give 8"),
    "layers": (2, f"{STAGES} --num-layers 5", "--num-layers 5 (with embedding and loss where they are counted: 5) does not divide"),
    "uneven": (3, "--pipeline-model-parallel-size 3 --decoder-first-pipeline-num-layers 1", "3 layers remain for 2 pipeline stages"),
    "layers of a chunk": (2, f"{STAGES} --num-layers-per-virtual-pipeline-stage 3", "--num-layers-per-virtual-pipeline-stage 3 does not divide the 2 layers"),
    "chunks of one stage": (1, "--num-virtual-stages-per-pipeline-rank 2", "--pipeline-model-parallel-size 1 is too small for 2 model chunks"),
    "gather": (1, "--overlap-param-gather --overlap-grad-reduce", "--overlap-param-gather needs --use-distributed-optimizer"),
    "gather alone": (1, "--overlap-param-gather --use-distributed-optimizer", "--overlap-param-gather needs --overlap-grad-reduce"),
    "learning rate": (1, "--min-lr 1", "--min-lr 1.0 is above --lr 0.001"),
}  # fmt: skip
"""What Megatron refuses while it validates arguments, one at a time."""

LATER = {
    "expert world": (2, "--expert-model-parallel-size 4", "2 GPUs do not divide by expert tensor * expert * pipeline", "is not divisible by expert_tensor_model_pipeline_parallel size"),
    "no sequence parallelism": (2, "--tensor-model-parallel-size 2", "without --sequence-parallel: Megatron's MoE layers refuse it", "without also enabling sequence parallelism"),
    "few microbatches": (2, f"{CHUNKS} --global-batch-size 2", "1 microbatches are fewer than its groups of 2", "number of contiguous micro-batches in a virtual pipeline stage"),
    "warm-up": (1, "--lr-warmup-iters 10", "--lr-warmup-iters 10 is not below --train-iters 10", "self.lr_warmup_steps < self.lr_decay_steps"),
    "width of experts": (2, f"{TENSOR} --moe-ffn-hidden-size 25", "--moe-ffn-hidden-size 25 does not divide over --expert-tensor-parallel-size 2", "25 is not divisible by 2"),
    "pattern": (1, "--moe-layer-freq [1,1,1]", "--moe-layer-freq names 3 layers and --num-layers is 4", "Invalid length of moe_layer_pattern: 3"),
}  # fmt: skip
"""What Megatron trips over once ranks run: processes started, data read, or the first step begun."""

OURS = {
    "nodes": (12, "--nproc-per-node 8 --global-batch-size 24", "--gpus 12 is no whole number of nodes of --nproc-per-node 8 GPUs: give 16"),
    "winners": (1, "--moe-router-topk 9", "--moe-router-topk 9 is more than --num-experts 8"),
    "no experts": (1, "--num-experts=false", "--num-experts is missing: competition routing needs"),
    "no experts for a baseline": (1, "--num-experts=false --router xmoe", "--num-experts is missing: --router xmoe needs"),
    "biases of shared experts": (1, "--disable-bias-linear=false --moe-shared-expert-intermediate-size 16", "shared experts have no biases"),
    "flex": (1, "--moe-token-dispatcher-type flex", "--moe-token-dispatcher-type flex needs more than one rank"),
    "heads by all-to-all": (8, "--context-parallel-size 8 --cp-comm-type a2a --seq-length 32", "splits a rank's 4 heads and 4 query groups"),
    "dense width": (2, f"{TENSOR} --ffn-hidden-size 49", "--ffn-hidden-size 49 does not divide over --tensor-model-parallel-size 2"),
    "vocabulary": (2, f"{TENSOR} --padded-vocab-size 127", "--padded-vocab-size 127 does not divide over"),
    "positions of a rank": (4, "--tensor-model-parallel-size 4 --sequence-parallel --seq-length 30", "a rank's 30 positions do not divide over --tensor-model-parallel-size 4: give --seq-length 32"),
    "layers of a stage": (2, f"{CHUNKS} --num-layers 6", "a stage's layers (3) do not divide into 2 model chunks"),
    "rest of a group": (2, f"{CHUNKS} --global-batch-size 6", "leave 1, fewer than --pipeline-model-parallel-size 2: give --global-batch-size 8"),
    "order of ranks": (4, f"{STAGES} --expert-model-parallel-size 2 --use-tp-pp-dp-mapping", "--use-tp-pp-dp-mapping needs as many data parallel ranks"),
    "precision": (1, "--use-precision-aware-optimizer", "--use-precision-aware-optimizer needs --use-distributed-optimizer"),
    "schedule of a pattern": (1, "--hybrid-layer-pattern *E*EEEE --compete-rate 0.6", "rate * layers = 0.6 * 5 = 3"),
    "prediction beside the embedding": (2, f"{STAGES} --pipeline-model-parallel-layout Et|t|ttm|L --mtp-num-layers 1", "predicts later tokens in chunk 1 of stage 0"),
    "schedule": (1, "--compete-rate 0.9", "--compete-max-active-layers 2 is below rate * layers"),
    "nothing": (1, "--num-layers=false", "--num-layers is missing"),
    "size": (1, "--expert-model-parallel-size 0", "--expert-model-parallel-size 0 is out of range"),
}  # fmt: skip
"""What has no message of Megatron's own, or needs more ranks or packages than a test has."""


def broken(flags: str, gpus: int) -> tuple[str, ...]:
    with pytest.raises(BrokenRules) as error:
        job_of(flags, gpus)
    assert "\n" not in str(error.value)
    return error.value.rules


@pytest.mark.parametrize("name", [*ARGUMENTS, *LATER, *OURS])
def test_a_broken_rule_names_flag_value_and_way_out(name: str) -> None:
    gpus, flags, expected = ({**ARGUMENTS, **{key: case[:3] for key, case in LATER.items()}, **OURS})[name]
    assert any(expected in rule for rule in broken(flags, gpus)), broken(flags, gpus)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_megatron_refuses_the_arguments_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus, flags, _ = ARGUMENTS[name]
    monkeypatch.setattr(job_check, "broken_rules", lambda *_: ())
    monkeypatch.setattr(job_check, "check_arguments", lambda *_: None)
    with pytest.raises(CompeteError, match="Megatron refuses these arguments"):
        job_of(flags, gpus)


@pytest.mark.parametrize("name", LATER)
def test_megatron_trips_over_it_later(name: str) -> None:
    gpus, flags, _, theirs = LATER[name]
    with pytest.raises(AssertionError) as error:
        run_ranks(gpus, trained_as_given, recipe_of(flags))
    assert re.search(theirs, str(error.value), re.IGNORECASE), str(error.value)[-2000:]


def trained_as_given(recipe: Recipe) -> None:
    """Without our rules, which the trainer has as well; in a process of its own."""
    job_check.broken_rules = lambda *_, **__: ()
    trained(recipe, steps=10)


def test_all_broken_rules_are_told_at_once() -> None:
    rules = broken("--num-layers 5 --pipeline-model-parallel-size 2 --global-batch-size 7 --compete-rate 0.9", 4)
    assert [re.search("--[a-z-]+", rule).group() for rule in rules] == [
        "--global-batch-size", "--num-layers", "--compete-max-active-layers",
    ]  # fmt: skip
    with pytest.raises(CompeteError, match=r"^3 rules are broken\. \(1\) --global-batch-size"):
        job_of("--num-layers 5 --pipeline-model-parallel-size 2 --global-batch-size 7 --compete-rate 0.9", 4)
