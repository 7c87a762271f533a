"""The command, as a user types it."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_compete.cli", *arguments],
        capture_output=True, text=True, env=os.environ | environment, cwd=ROOT, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    "recipe",
    sorted(set((ROOT / "examples").glob("*.yaml")) - set((ROOT / "examples").glob("chain_*.yaml"))),
    ids=lambda path: path.stem,
)
def test_dry_run_prints_the_launch(recipe: Path) -> None:
    result = command("pretrain", "--recipe", str(recipe), "--train-iters", "7", DRY_RUN="1")
    assert result.returncode == 0, result.stderr
    assert " torchrun " in result.stdout and "--train-iters 7" in result.stdout


def test_help_names_the_verbs_and_imports_nothing_heavy() -> None:
    check = (
        "import sys, megatron_compete.cli as cli; cli.build_parser(); assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
    result = command("--help")
    assert result.returncode == 0 and "pretrain" in result.stdout and "plan" in result.stdout


def test_pretrain_help_has_torchruns_options_and_all_arguments() -> None:
    result = command("pretrain", "--help")
    assert result.returncode == 0, result.stderr
    for flag in (
        "--recipe RECIPE",
        "rdzv-conf",
        "--tensor-model-parallel-size",
        "--compete-rate",
        "--router-temperature",
        "10%)",
    ):
        assert flag in result.stdout, flag


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_every_tool_has_help(tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(tool), "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(tool), run_name="__main__")
    assert exit.value.code in (0, None) and "--help" in capsys.readouterr().out


def test_every_verb_and_the_study_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_compete.study.__main__ import parser

    verbs = build_parser()[1]
    for build, words in [
        (parser, ["--help"]),
        *((lambda: build_parser()[0], [verb, "--help"]) for verb in verbs if verb != "pretrain"),
    ]:
        with pytest.raises(SystemExit) as exit:
            build().parse_args(words)
        assert exit.value.code == 0 and "--help" in capsys.readouterr().out


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
