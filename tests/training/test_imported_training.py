"""An imported or upcycled model goes on training with competition, in any layout, from the loss it came with."""

from pathlib import Path
from typing import Any

import pytest

from megatron_compete.checkpoint.import_hf import Import, import_checkpoint
from megatron_compete.checkpoint.upcycle import Upcycling
from megatron_compete.launch.recipe import read_recipe
from megatron_compete.report.scalars import Scalars, read_scalars
from tests.checkpoint import hf_models
from tests.ranks import run_ranks
from tests.training.runs import largest_difference, train_on_rank

STEPS = 3
TRAINING = """
--seq-length 32 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --lr-decay-style constant --weight-decay 0
--mock-data --num-workers 0 --eval-iters 0 --log-interval 1 --train-iters 3 --moe-token-dispatcher-type alltoall
--compete-rate 1 --compete-max-active-layers 2
"""
LAYOUTS = {
    "one": (1, ""),
    "tp2": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "ep2": (2, "--expert-model-parallel-size 2"),
    "pp2": (2, "--pipeline-model-parallel-size 2"),
}


def run(imported: Path, layout: str, folder: Path, flags: str = "") -> Scalars:
    """The trainer's entry with the recipe that the import wrote; what it logs."""
    ranks, parallel = LAYOUTS[layout]
    recipe = read_recipe(imported / "recipe.yaml")
    recipe.override([*TRAINING.split(), *parallel.split(), *flags.split(), "--tensorboard-dir", str(folder)])
    command = recipe.command()
    run_ranks(ranks, train_on_rank, command[command.index("-m") + 2 :])
    return read_scalars(folder)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    import_checkpoint(Import(hf_models.save(folder / "hf", "qwen3_moe"), folder / "megatron"))
    return folder / "megatron"


@pytest.fixture(scope="module")
def on_one_rank(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Scalars:
    return run(imported, "one", tmp_path_factory.mktemp("one"))


# The slow two: Megatron loads tensors into TP and PP whoever saved them, and test_pretrain.py has that.
@pytest.mark.parametrize(
    "layout", ["ep2", pytest.param("tp2", marks=pytest.mark.slow), pytest.param("pp2", marks=pytest.mark.slow)]
)
def test_every_layout_starts_from_the_imported_model(
    layout: str, imported: Path, on_one_rank: Scalars, tmp_path: Path
) -> None:
    assert on_one_rank["competition/active-layers"][1] == 2.0
    other = run(imported, layout, tmp_path)
    assert sorted(other["lm loss"]) == [1, 2, 3]
    assert largest_difference(on_one_rank["lm loss"], other["lm loss"]) < 1e-4


def test_a_release_needs_no_flags_to_load(imported: Path, tmp_path: Path) -> None:
    pretrained = run(imported, "one", tmp_path / "pretrained", "--train-iters 1")
    plain = run(imported, "one", tmp_path / "load", f"--train-iters 1 --load {imported}")
    fresh = run(imported, "one", tmp_path / "fresh", "--train-iters 1 --pretrained-checkpoint=false")
    assert plain["lm loss"] == pretrained["lm loss"]
    assert abs(fresh["lm loss"][1] - plain["lm loss"][1]) > 0.1  # it is the imported model that trained


def test_a_run_that_starts_from_an_import_resumes_its_own(imported: Path, tmp_path: Path) -> None:
    own = f"--save {tmp_path}/run --load {tmp_path}/run --save-interval 2"
    run(imported, "one", tmp_path / "first", f"{own} --exit-interval 2")
    second = run(imported, "one", tmp_path / "second", own)
    assert sorted(second["lm loss"]) == [STEPS]


def test_a_competing_step_of_an_upcycled_model_keeps_its_function(tmp_path: Path) -> None:
    """All experts answer alike, so whoever wins, the output is the dense MLP's."""
    source = hf_models.save(tmp_path / "hf", "llama")
    import_checkpoint(Import(source, tmp_path / "megatron", upcycling=Upcycling(4)))
    flags = "--train-iters 1"
    competing: Any = run(tmp_path / "megatron", "one", tmp_path / "competing", flags)
    plain = run(tmp_path / "megatron", "one", tmp_path / "plain", f"{flags} --compete-rate 0")
    assert competing["competition/active-layers"][1] == 2.0
    assert abs(competing["lm loss"][1] - plain["lm loss"][1]) < 1e-5
    # The winners' outputs are equal: the mean cosine of the diversity loss is at its largest.
    assert competing["competition/diversity-loss"][1] == pytest.approx(1.0, abs=1e-4)
