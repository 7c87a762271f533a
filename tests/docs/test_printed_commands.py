"""Every command that a Markdown file of this project prints is one that its program takes."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from tests.docs.commands import ROOT, check, commands_of

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "slurm" / "README.md",
         ROOT / "docker" / "README.md"]  # fmt: skip
PRINTED: dict[str, Path] = {command: path.relative_to(ROOT) for path in FILES for command in commands_of(path)}
"""Each command once, with the last file that prints it."""


def test_there_are_commands() -> None:
    assert len(PRINTED) > 70
    assert len(commands_of(ROOT / "README.md")) > 12
    assert {"docs/guides/converting.md", "docs/guides/corpus.md", "slurm/README.md"} <= {
        str(path) for path in PRINTED.values()
    }


@pytest.mark.parametrize("command", PRINTED, ids=lambda command: f"{PRINTED[command]}: {command[:60]}")
def test_a_printed_command_is_taken(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


@pytest.mark.parametrize(
    "command",
    [
        "python tools/convert_checkpoint.py --to hf --checkpoint c --outptu o",
        "python tools/verify_checkpoint.py --no-such-flag",
        "python -m pip install -e '.[no-such-extra]'",
        "megatron-compete plan --recipe examples/none.yaml",
        "megatron-compete status --no-such-flag",
        "megatron-compete pretrain --recipe examples/demo.yaml --no-such-flag 5",
        "megatron-compete no-such-verb",
        "torchrun pretrain_gpt.py --no-such-flag",
        "pytest tests/none",
        "make no-such-target",
        "sbatch slurm/none.sbatch",
    ],
)
def test_a_command_that_is_not_taken_fails(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((SystemExit, AssertionError, CompeteError)):
        check(command, monkeypatch)
