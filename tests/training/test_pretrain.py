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


LAYOUTS = {
    "one": (1, ""),
    "pp2-ep2": (4, "--pipeline-model-parallel-size 2 --expert-model-parallel-size 2"),
    "tp2": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "vpp2": (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1"),
}
"""Ranks and flags. All start from one checkpoint's weights, with a fresh optimizer: Megatron splits its optimizer in
two where experts are parallel, and cannot load the one from the other."""


def run_layout(name: str, folder: Path) -> dict[str, dict[int, float]]:
    world, layout = LAYOUTS[name]
    if not (folder / name).exists():
        train(world, f"{layout} --train-iters {STEPS} --load {folder}/ckpt --no-load-optim --tensorboard-dir {folder}/{name}")  # fmt: skip
    return scalars(folder / name)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "one"])
def test_layout_equals_one_rank(name: str, folder: Path, uninterrupted: Path) -> None:
    one, many = run_layout("one", folder), run_layout(name, folder)
    assert set(many["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    assert largest_difference(one["lm loss"], many["lm loss"]) <= 1e-4
    assert one["competition/active-layers"] == many["competition/active-layers"]
    for metric in ("agreement", "distillation-loss", "diversity-loss"):
        metric = f"competition/{metric}"
        assert largest_difference(one[metric], many[metric]) <= 1e-3 * max(one[metric].values())


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
    "--moe-expert-capacity-factor 1.0": "--moe-expert-capacity-factor does not work with competition",
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
