"""Competition by utility in the trainer: layouts, recomputation and resuming against one rank."""

from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.training.runs import largest_difference, train

UTILITY = "--compete-kind utility --compete-distill-coeff 0 --compete-diversity-coeff 0"
STEPS, MIDDLE = 7, 2
PP2 = "--pipeline-model-parallel-size 2"
TP2 = "--tensor-model-parallel-size 2 --sequence-parallel"
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
OVERLAPPED = "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 500"
MISSING = "--compete-utility-gradient missing"

Scalars = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("utility")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Scalars:
    """One rank, all steps, with a checkpoint in the middle that the other runs start from."""
    flags = f"{UTILITY} --train-iters {STEPS} --save {folder}/ckpt --save-interval {MIDDLE}"
    train(1, f"{flags} --tensorboard-dir {folder}/whole")
    (folder / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    return read_scalars(folder / "whole")


def run(name: str, world: int, flags: str, folder: Path) -> Scalars:
    """Scalars of a run from the checkpoint's weights with a fresh optimizer, which may be split otherwise."""
    flags = f"{UTILITY} {flags} --train-iters {STEPS} --load {folder}/ckpt --no-load-optim"
    if not (folder / name).exists():
        train(world, f"{flags} --tensorboard-dir {folder}/{name}")
    return read_scalars(folder / name)


def test_resumed_run_equals_uninterrupted_one(folder: Path, uninterrupted: Scalars) -> None:
    train(1, f"{UTILITY} --train-iters {STEPS} --load {folder}/ckpt --tensorboard-dir {folder}/resumed")
    resumed = read_scalars(folder / "resumed")
    assert set(resumed["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    for metric, values in resumed.items():
        if metric == "lm loss" or metric.startswith("competition/"):
            assert values == {step: value for step, value in uninterrupted[metric].items() if step > MIDDLE}


LAYOUTS = {
    "pp2-ep2": (4, f"{PP2} --expert-model-parallel-size 2"),
    "tp2-ep2-etp2": (4, f"{TP2} --expert-model-parallel-size 2"),
    "vpp2-missing": (2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1 {MISSING}"),
    "ep2-overlapped": (2, f"{OVERLAPPED} --expert-model-parallel-size 2"),
}
"""Ranks and flags. With a micro batch of 2 and a global batch of 8, gradients accumulate over 2 or 4 microbatches."""


@pytest.mark.parametrize(
    "name", ["pp2-ep2", *(pytest.param(name, marks=pytest.mark.slow) for name in list(LAYOUTS)[1:])]
)
@pytest.mark.usefixtures("uninterrupted")
def test_layout_equals_one_rank(name: str, folder: Path) -> None:
    world, flags = LAYOUTS[name]
    one = run("one-missing", 1, MISSING, folder) if MISSING in flags else run("one", 1, "", folder)
    many = run(name, world, flags, folder)
    assert set(many["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    assert largest_difference(one["lm loss"], many["lm loss"]) <= 1e-4
    assert one["competition/active-layers"] == many["competition/active-layers"]
    assert largest_difference(one["competition/agreement"], many["competition/agreement"]) <= 1e-2


@pytest.mark.slow  # tests/moe/test_utility.py has it with two microbatches in flight, test_pretrain.py on two stages
@pytest.mark.usefixtures("uninterrupted")
def test_recomputation_changes_no_bit(folder: Path) -> None:
    """Whole layers on two stages, where the first has two microbatches in flight."""
    plain, recomputed = run("pp2", 2, PP2, folder), run("pp2-full", 2, f"{PP2} {FULL}", folder)
    for metric in recomputed:
        if metric == "lm loss" or metric.startswith("competition/"):
            assert recomputed[metric] == plain[metric]


@pytest.mark.usefixtures("uninterrupted")
def test_it_is_another_training_than_without(folder: Path) -> None:
    by_utility = run("one", 1, "", folder)
    train(
        1,
        f"--compete-rate 0 --compete-override-schedule --train-iters {STEPS} --load {folder}/ckpt --no-load-optim --tensorboard-dir {folder}/rate0",
    )
    assert largest_difference(by_utility["lm loss"], read_scalars(folder / "rate0")["lm loss"]) > 1e-4
