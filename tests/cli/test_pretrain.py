"""`megatron-compete pretrain`, as a user types it."""

from pathlib import Path

import pytest

from tests.cli.test_cli import ROOT, command


@pytest.mark.parametrize(
    "recipe",
    sorted(set((ROOT / "examples").glob("*.yaml")) - set((ROOT / "examples").glob("chain_*.yaml"))),
    ids=lambda path: path.stem,
)
def test_dry_run_prints_the_launch(recipe: Path) -> None:
    result = command("pretrain", "--recipe", str(recipe), "--train-iters", "70000", DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    assert " torchrun " in result.stdout and "--train-iters 70000" in result.stdout


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_a_dry_run_refuses_what_the_trainer_would(launcher: str) -> None:
    refused = ("--moe-enable-routing-replay", "--launcher", launcher)
    result = command("pretrain", "--recipe", str(ROOT / "examples/demo.yaml"), *refused, DRY_RUN="1")
    assert result.returncode == 2 and result.stdout == ""
    assert "error: --moe-enable-routing-replay does not work with competition routing" in result.stderr


def test_a_dry_run_says_what_it_could_not_check() -> None:
    result = command("pretrain", "--recipe", str(ROOT / "examples/demo.yaml"), "--nnodes", "1:4", DRY_RUN="1")
    assert result.returncode == 0 and " torchrun " in result.stdout
    assert "note: not checked whether it would train: --nnodes 1:4 --nproc-per-node" in result.stderr


def test_help_has_torchruns_options_and_all_arguments() -> None:
    result = command("pretrain", "--help")
    assert result.returncode == 0, result.stderr
    for flag in (
        "--recipe RECIPE",
        "--launcher {torchrun,srun,mpirun}",
        "rdzv-conf",
        "--tensor-model-parallel-size",
        "--compete-rate",
        "--router-temperature",
        "10%)",
    ):
        assert flag in result.stdout, flag


def test_a_missing_recipe_is_one_line_and_exit_code_2() -> None:
    result = command("pretrain", "--recipe", "nowhere.yaml")
    assert result.returncode == 2
    assert result.stderr == "error: --recipe nowhere.yaml cannot be read: No such file or directory\n"


def test_bad_arguments_end_the_whole_job_with_one_error_line() -> None:
    """Two real ranks: rank 0 speaks, the others and torchrun are silent."""
    result = command(
        "pretrain", "--recipe", "examples/demo.yaml", "--nproc-per-node", "2", "--pipeline-model-parallel-size", "1",
        "--data-path", "/nowhere/data", "--tokenizer-type", "NullTokenizer", "--vocab-size", "100",
    )  # fmt: skip
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if "rror" in line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "/nowhere/data" in lines[0]
    assert "Traceback" not in result.stderr
