"""Every command that a Markdown file of this project prints is one that its program takes."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from tests.docs.commands import ROOT, check, commands_of

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "slurm" / "README.md",
         ROOT / "docker" / "README.md"]  # fmt: skip
COMMANDS = [(path.relative_to(ROOT), command) for path in FILES for command in commands_of(path)]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 50
    assert {str(path) for path, _ in COMMANDS} >= {
        "README.md",
        "docs/checkpoints.md",
        "docs/corpus.md",
        "slurm/README.md",
    }


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[f"{path}: {command[:60]}" for path, command in COMMANDS])
def test_a_printed_command_is_taken(path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "python tools/convert_checkpoint.py --to hf --checkpoint c --outptu o",
        "python tools/verify_checkpoint.py --no-such-flag",
        "megatron-compete plan --recipe examples/none.yaml",
        "megatron-compete status --no-such-flag",
        "megatron-compete pretrain --recipe examples/demo.yaml --no-such-flag 5",
        "make no-such-target",
        "sbatch slurm/none.sbatch",
    ],
)
def test_a_command_that_is_not_taken_fails(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((SystemExit, AssertionError, CompeteError)):
        check(command, monkeypatch)
