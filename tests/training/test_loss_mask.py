"""--calculate-per-token-loss with ends of documents masked: losses of routers weigh by what the loss counts, on all stages."""

from pathlib import Path

import numpy as np
import pytest

from megatron_compete.report.scalars import read_scalars as scalars
from tests.data.datasets import write_dataset
from tests.ranks import run_ranks
from tests.training.runs import MODEL, largest_difference, train_on_rank

STEPS = 4
EOD = 126
"""Of MODEL's tokenizer."""
FLAGS = (
    "--split 100,0,0 --train-iters {steps} --calculate-per-token-loss --eod-mask-loss --moe-aux-loss-coeff 1 "
    "--moe-z-loss-coeff 0.1 --compete-router-balance-coeff 3 --compete-response-balance-coeff 3"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a dataset of which some samples are little but ends of documents, and a checkpoint before the first step."""
    folder = tmp_path_factory.mktemp("masked")
    random = np.random.default_rng(1)
    documents = []
    for number in range(60):
        tokens = random.integers(0, EOD, 32)
        tokens[random.random(32) < (0.9 if number % 3 == 0 else 0.05)] = EOD
        documents.append([tokens.tolist()])
    write_dataset(folder / "some", documents)
    run(folder, "first", 1, f"--save {folder}/ckpt --save-interval 1", steps=1)
    return folder


def arguments(folder: Path, flags: str, steps: int = STEPS) -> list[str]:
    model = MODEL.replace("--mock-data", f"--data-path {folder}/some")
    return f"{model} {FLAGS.format(steps=steps)} {flags}".split()


def run(folder: Path, name: str, world: int, flags: str, steps: int = STEPS) -> dict[str, dict[int, float]]:
    run_ranks(world, train_on_rank, arguments(folder, f"{flags} --tensorboard-dir {folder}/{name}", steps))
    return scalars(folder / name)


def told_nothing(arguments: list[str]) -> None:
    """A run whose routers weigh by the layer's tokens."""
    from megatron_compete.training import batches

    batches.weighs_by_mask = lambda args: False
    train_on_rank(arguments)


LAYOUTS = {
    "tp2-pp2": (4, "--tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2"),
    "pp4": (4, "--pipeline-model-parallel-size 4"),
    "vpp2-recomputed": (2, "--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 1 --recompute-granularity selective --recompute-modules moe"),
}  # fmt: skip
"""Stages in the middle, whose ranks read samples for this alone; each with several microbatches in flight."""


def from_checkpoint(folder: Path, flags: str = "") -> str:
    return f"--load {folder}/ckpt --no-load-optim {flags}"


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> dict[str, dict[int, float]]:
    return run(folder, "one", 1, from_checkpoint(folder))


@pytest.mark.parametrize("name", ["tp2-pp2", "pp4", pytest.param("vpp2-recomputed", marks=pytest.mark.slow)])
def test_layouts_equal_one_rank(name: str, folder: Path, one_rank: dict[str, dict[int, float]]) -> None:
    world, flags = LAYOUTS[name]
    many = run(folder, name, world, from_checkpoint(folder, flags))
    assert set(many["lm loss"]) == set(range(2, STEPS + 1))
    assert largest_difference(one_rank["lm loss"], many["lm loss"]) <= 1e-4
    assert largest_difference(one_rank["load_balancing_loss"], many["load_balancing_loss"]) <= 1e-4


def test_runs_that_weigh_by_the_layers_tokens_are_others(folder: Path, one_rank: dict[str, dict[int, float]]) -> None:
    flags = from_checkpoint(folder, f"--tensorboard-dir {folder}/untold")
    run_ranks(1, told_nothing, arguments(folder, flags))
    assert largest_difference(one_rank["lm loss"], scalars(folder / "untold")["lm loss"]) > 1e-3
