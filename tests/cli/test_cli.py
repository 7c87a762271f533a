"""The command, as a user types it."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete import __version__
from megatron_compete.cli import dispatch
from megatron_compete.cli.verbs import VERBS, Verb
from megatron_compete.common.errors import CompeteError

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted((ROOT / "tools").glob("*.py"))


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_compete", *arguments],
        capture_output=True, text=True, env=os.environ | environment, cwd=ROOT, timeout=300,
    )  # fmt: skip


def test_help_names_every_verb() -> None:
    result = command("--help")
    assert (result.returncode, result.stderr) == (0, "")
    for verb in VERBS:
        assert f"  {verb.name} " in result.stdout and verb.summary in result.stdout
    assert command().returncode == 2 and command("--version").stdout == f"megatron-compete {__version__}\n"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.name != "pretrain"], ids=lambda verb: verb.name)
def test_a_verbs_help(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    """Its flags, and an example that it takes itself."""
    with pytest.raises(SystemExit) as exit:
        dispatch([verb.name, "--help"])
    said = capsys.readouterr().out
    assert exit.value.code == 0 and f"usage: megatron-compete {verb.name} " in said and "None" not in said
    main = verb.load()
    assert main.name == verb.name
    assert said.split()[-len(main.example.split()) :] == main.example.split()
    main.parse(main.example.replace("\\\n", " ").split())


def test_no_verbs_parser_imports_what_takes_seconds() -> None:
    """Help within a second: whoever looks a flag up does not wait for torch."""
    check = (
        "import sys; from megatron_compete.cli.verbs import VERBS; [verb.load().parser() for verb in VERBS]; "
        "print({'torch', 'megatron', 'transformers', 'pyarrow', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["statsu"], "megatron-compete has no verb statsu (did you mean status?): see megatron-compete --help"),
        (["fly"], "megatron-compete has no verb fly: see megatron-compete --help"),
        (["convert", "--chekpoint", "c"], "convert takes no argument --chekpoint (did you mean --checkpoint?): see"),
        (["merge", "--xyz=1"], "merge takes no argument --xyz=1: see megatron-compete merge --help"),
        (["doctor", "now"], "doctor takes no argument now: see megatron-compete doctor --help"),
        (["convert", "--to", "hg"], "--to: invalid choice: 'hg' (choose from"),
        (["plan"], "required: --recipe: see megatron-compete plan --help"),
    ],
)
def test_what_is_misspelt_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(CompeteError, match=re.escape(message)):
        dispatch(words)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_every_tool_is_a_verb(tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(tool), "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(tool), run_name="__main__")
    assert exit.value.code in (0, None) and "usage: megatron-compete " in capsys.readouterr().out
