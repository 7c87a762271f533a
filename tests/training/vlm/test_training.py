"""A vision-language model through the trainer: stock at rate 0, one rank against many, resumed against uninterrupted."""

from pathlib import Path

import pytest

from megatron_compete.data.conversations.sample_list import SampleList
from megatron_compete.report.scalars import read_scalars
from megatron_compete.resilience.resuming.saved_run import read_saved_run
from tests.training.runs import largest_difference
from tests.training.vlm.runs import train, write_data

STEPS, MIDDLE = 5, 2
VISION = "--experts-in vision projector"
ALL = "--experts-in vision projector language --num-experts 8 --vision-num-experts 4"
EP2 = "--expert-model-parallel-size 2"
PP2 = "--pipeline-model-parallel-size 2"
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 --recompute-vision"

Scalars = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vision-language")


@pytest.fixture(scope="module")
def data(folder: Path) -> str:
    return write_data(folder)


def run(name: str, world: int, flags: str, folder: Path, data: str) -> Scalars:
    """Scalars of a run; each is made once."""
    if not (folder / name).exists():
        train(world, f"{data} {flags} --train-iters {STEPS} --tensorboard-dir {folder}/{name}")
    return read_scalars(folder / name)


@pytest.fixture(scope="module")
def whole(folder: Path, data: str) -> Scalars:
    """One rank, all steps, with a checkpoint in the middle that other runs start from."""
    scalars = run("whole", 1, f"{ALL} --save {folder}/ckpt --save-interval {MIDDLE}", folder, data)
    (folder / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    return scalars


def after(scalars: Scalars, name: str) -> dict[int, float]:
    return {step: value for step, value in scalars[name].items() if step > MIDDLE}


def test_all_parts_compete_and_it_learns(whole: Scalars) -> None:
    losses = whole["lm loss"]
    assert len(losses) == STEPS and losses[STEPS] < losses[1] - 0.5
    assert max(whole["competition/active-layers"].values()) == 2


def test_rate_0_is_megatrons_model_bit_for_bit(folder: Path, data: str) -> None:
    stock = run("stock", 1, f"{VISION} --router topk", folder, data)
    never = run("never", 1, f"{VISION} --compete-rate 0", folder, data)
    assert len(stock["lm loss"]) == STEPS
    for name in ("lm loss", "grad-norm"):
        assert never[name] == stock[name]


def test_a_baseline_router_logs_its_experts_per_token(folder: Path, data: str) -> None:
    logged = run("remoe", 1, f"{VISION} --router remoe", folder, data)["experts_per_token"]
    assert set(logged) == set(range(1, STEPS + 1)) and all(0 < count <= 4 for count in logged.values())


def test_resumed_run_equals_uninterrupted_one(folder: Path, data: str, whole: Scalars) -> None:
    resumed = run("resumed", 1, f"{ALL} --load {folder}/ckpt", folder, data)
    assert set(resumed["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    for name in resumed:
        if name == "lm loss" or name.startswith("competition/"):
            assert resumed[name] == after(whole, name), name


def test_a_checkpoint_knows_the_list_of_its_samples(folder: Path, data: str, whole: Scalars) -> None:
    lists = map(SampleList.load, folder.glob("pictures/**/cache/conversations-*.npz"))
    (identity,) = (one.identity for one in lists if one.files[0].endswith("train.json"))
    saved = read_saved_run(folder / "ckpt")
    assert saved is not None and saved.arguments.listed_samples == identity


def test_recompute_changes_no_bit(folder: Path, data: str, whole: Scalars) -> None:
    resumed = run("resumed", 1, f"{ALL} --load {folder}/ckpt", folder, data)
    recomputed = run("recomputed", 1, f"{ALL} {FULL} --load {folder}/ckpt", folder, data)
    for name in ("lm loss", "grad-norm"):
        assert recomputed[name] == resumed[name]


LAYOUTS = {
    "ep2": (2, EP2),
    "pp2": (2, PP2),
    "dp4": (4, "--use-distributed-optimizer"),
    "pp2-ep2-recomputed": (4, f"{PP2} {EP2} {FULL}"),
}
"""Ranks and flags. On one rank gradients accumulate over four microbatches of two samples."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("recomputed" in name)) for name in LAYOUTS]
)
def test_layout_equals_one_rank(name: str, folder: Path, data: str, whole: Scalars) -> None:
    """Data go on with the same samples, in whatever layout; microbatches weigh by their tokens, of one sample or of eight."""
    world, flags = LAYOUTS[name]
    start = f"{ALL} --load {folder}/ckpt --no-load-optim"
    one = run("one", 1, start, folder, data)
    many = run(name, world, f"{start} {flags}", folder, data)
    assert set(many["lm loss"]) == set(range(MIDDLE + 1, STEPS + 1))
    assert one["competition/active-layers"] == many["competition/active-layers"]
    assert largest_difference(one["lm loss"], many["lm loss"]) <= 1e-4
    assert largest_difference(one["competition/agreement"], many["competition/agreement"]) <= 1e-3


def test_samples_count_alike_in_microbatches_of_any_size(folder: Path, data: str, whole: Scalars) -> None:
    """Padding, and pictures of other samples, change nothing. Losses of routers are means over a microbatch, so not these."""
    coefficients = ("distill", "diversity", "response-balance", "router-balance")
    without = " ".join(f"--compete-{name}-coeff 0" for name in coefficients)
    start = f"{ALL} {without} --load {folder}/ckpt --no-load-optim"
    one, eight = (run(f"microbatch-{size}", 1, f"{start} --micro-batch-size {size}", folder, data) for size in (1, 8))
    for name in ("lm loss", "grad-norm"):
        assert largest_difference(one[name], eight[name]) <= 2e-5, name
