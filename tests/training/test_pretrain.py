"""The trainer entry: resume, layouts, the limit A_max, and refusals."""

from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars as scalars
from tests.training.runs import largest_difference, losses, train

STEPS, MIDDLE = 8, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Path:
    """One rank, all steps, with a checkpoint in the middle that the other runs start from."""
    train(1, f"--train-iters {STEPS} --save {folder}/ckpt --save-interval {MIDDLE} --tensorboard-dir {folder}/whole")
    (folder / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    return folder / "whole"


def test_resumed_run_equals_uninterrupted_one(folder: Path, uninterrupted: Path) -> None:
    train(1, f"--train-iters {STEPS} --load {folder}/ckpt --tensorboard-dir {folder}/resumed")
    whole, resumed = scalars(uninterrupted), scalars(folder / "resumed")
    assert set(resumed["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    for metric, values in resumed.items():
        if metric == "lm loss" or metric.startswith("competition/"):
            assert values == {step: value for step, value in whole[metric].items() if step > MIDDLE}


BASES = {
    "": "",
    "per-token": "--calculate-per-token-loss",
    "dense-first": "--moe-layer-freq [0,1,1,1]",
}
"""Flags of the one-rank runs that layouts are compared with."""

LAYOUTS = {
    "pp2-ep2": (4, "", "--pipeline-model-parallel-size 2 --expert-model-parallel-size 2"),
    "tp2": (2, "", "--tensor-model-parallel-size 2 --sequence-parallel"),
    "tp2-ep2-etp1": (2, "", "--tensor-model-parallel-size 2 --sequence-parallel --expert-model-parallel-size 2 --expert-tensor-parallel-size 1"),
    "tp2-ep2-etp2": (4, "", "--tensor-model-parallel-size 2 --sequence-parallel --expert-model-parallel-size 2"),
    "vpp2": (2, "", "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"),
    "dp2-distributed-optimizer": (2, "", "--use-distributed-optimizer"),
    "ep2-distributed-optimizer": (2, "", "--use-distributed-optimizer --expert-model-parallel-size 2"),
    "ep2-per-token": (2, "per-token", "--expert-model-parallel-size 2"),
    "tp2-per-token": (2, "per-token", "--tensor-model-parallel-size 2 --sequence-parallel"),
    "pp2-dense-first": (2, "dense-first", "--pipeline-model-parallel-size 2"),
}  # fmt: skip
"""Ranks, base and flags. All start from the weights of one checkpoint, with a fresh optimizer: Megatron splits its
optimizer in two where experts are parallel, and cannot load the one from the other. With a micro batch of 2 and a
global batch of 8, gradients accumulate over 2 or 4 microbatches."""

DENSE_FIRST_CHECKPOINT = "ckpt-dense-first"


@pytest.fixture(scope="module")
def dense_first_checkpoint(folder: Path) -> None:
    train(1, f"{BASES['dense-first']} --train-iters {MIDDLE} --save {folder}/{DENSE_FIRST_CHECKPOINT} --save-interval {MIDDLE}")  # fmt: skip


def run(name: str, world: int, flags: str, folder: Path) -> dict[str, dict[int, float]]:
    """Scalars of a run from the checkpoint's weights; run once per name."""
    checkpoint = DENSE_FIRST_CHECKPOINT if BASES["dense-first"] in flags else "ckpt"
    if not (folder / name).exists():
        train(world, f"{flags} --train-iters {STEPS} --load {folder}/{checkpoint} --no-load-optim --tensorboard-dir {folder}/{name}")  # fmt: skip
    return scalars(folder / name)


SLOW = ("tp2-ep2-etp2", "dp2-distributed-optimizer")
"""Repeated by others here (experts split no further, experts parallel too) and by the layer's own layouts."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LAYOUTS])
@pytest.mark.usefixtures("uninterrupted", "dense_first_checkpoint")
def test_layout_equals_one_rank(name: str, folder: Path) -> None:
    world, base, flags = LAYOUTS[name]
    one = run(f"one-{base}", 1, BASES[base], folder)
    many = run(name, world, f"{BASES[base]} {flags}", folder)
    assert set(many["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    assert largest_difference(one["lm loss"], many["lm loss"]) <= 1e-4
    assert one["competition/active-layers"] == many["competition/active-layers"]
    for metric in ("agreement", "distillation-loss", "diversity-loss"):
        metric = f"competition/{metric}"
        assert largest_difference(one[metric], many[metric]) <= 1e-3 * max(one[metric].values())


RECOMPUTE = {
    "full": "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "moe": "--recompute-granularity selective --recompute-modules moe",
}
STAGES = {"pp1": (1, ""), "pp2": (2, "--pipeline-model-parallel-size 2")}
"""Ranks and flags; with two stages 1F1B has two microbatches in flight on the first."""


@pytest.mark.parametrize("stages", [pytest.param("pp1", marks=pytest.mark.slow), "pp2"])
@pytest.mark.parametrize("kind", RECOMPUTE)
@pytest.mark.usefixtures("uninterrupted")
def test_recompute_changes_no_bit(kind: str, stages: str, folder: Path) -> None:
    world, flags = STAGES[stages]
    plain = run(f"one-{stages}" if flags else "one-", world, flags, folder)
    recomputed = run(f"recompute-{kind}-{stages}", world, f"{flags} {RECOMPUTE[kind]}", folder)
    assert recomputed["lm loss"]
    for metric in recomputed:
        if metric == "lm loss" or metric.startswith("competition/"):
            assert recomputed[metric] == plain[metric]


LONG = 200


@pytest.mark.slow
def test_two_hundred_steps_with_pipeline_and_expert_parallelism(folder: Path) -> None:
    """The curve of PP=2 x EP=2 stays on that of one rank."""
    train(1, f"--train-iters 1 --save {folder}/ckpt-long --save-interval 1")
    runs = {"long-one": (1, ""), "long-pp2-ep2": (4, "--pipeline-model-parallel-size 2 --expert-model-parallel-size 2")}
    for name, (world, flags) in runs.items():
        train(
            world,
            f"{flags} --lr 1e-3 --train-iters {LONG + 1} --load {folder}/ckpt-long --no-load-optim "
            f"--tensorboard-dir {folder}/{name}",
            timeout=900,
        )
    one, many = (losses(folder / name) for name in runs)
    assert len(one) == LONG
    assert largest_difference(one, many) <= 1e-4


def test_tensorboard_shows_the_schedule(uninterrupted: Path) -> None:
    from megatron_compete.schedule import CompetitionSchedule

    logged = scalars(uninterrupted)
    table = CompetitionSchedule(num_layers=4, rate=0.4, max_active=2).table(0, STEPS)
    expected = {step + 1: float(row.sum()) for step, row in enumerate(table)}
    assert logged["competition/active-layers"] == expected
    assert set(expected.values()) == {0.0, 1.0, 2.0} or max(expected.values()) <= 2.0
    competing = {step for step, layers in expected.items() if layers}
    for metric in ("distillation-loss", "diversity-loss", "agreement"):
        assert set(logged[f"competition/{metric}"]) == competing
    assert all(0.0 <= value <= 1.0 for value in logged["competition/agreement"].values())


def test_router_topk_is_megatrons_layer(folder: Path) -> None:
    train(1, f"--router topk --train-iters 3 --tensorboard-dir {folder}/topk")
    train(1, f"--compete-rate 0 --train-iters 3 --tensorboard-dir {folder}/rate0")
    assert losses(folder / "topk") == losses(folder / "rate0")
    assert not any(name.startswith("competition/") for name in scalars(folder / "topk"))


REFUSED = {
    "--moe-router-topk 5": "--moe-router-topk 5 is more than --num-experts 4",
    "--expert-model-parallel-size 3": "does not divide over --expert-model-parallel-size 3",
    "--compete-rate 1.5": "--compete-rate 1.5 is out of range",
    "--compete-max-active-layers 0": "--compete-max-active-layers 0 is out of range",
    "--compete-max-active-layers 1": "raise it to 2 or lower --compete-rate to 0.25",
    "--moe-router-topk 1 --moe-router-pre-softmax --moe-apply-probs-on-input": "--moe-apply-probs-on-input does not work with competition",
    "--tokenizer-type HuggingFaceTokenizer": "--tokenizer-type HuggingFaceTokenizer needs --tokenizer-model FOLDER",
    "--compete-rat 0.1": "unrecognized arguments: --compete-rat 0.1",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_bad_input_is_one_line_and_exit_code_2(arguments: str) -> None:
    with pytest.raises(AssertionError) as failure:
        train(1, f"--train-iters 1 {arguments}")
    output = str(failure.value)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and REFUSED[arguments] in errors[0]
    assert "SystemExit: 2" in output
