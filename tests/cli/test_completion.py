"""Completion in a real bash: what a tab would offer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
PATH={folder}:$PATH
eval "$(megatron-compete completion bash)"
COMP_LINE={line!r} COMP_POINT={point} COMP_WORDS=({words} '') COMP_CWORD={count} COMP_TYPE=9
_python_argcomplete megatron-compete
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    program = tmp_path / "megatron-compete"
    program.write_text(f"#!{sys.executable}\nfrom megatron_compete.cli import main\nmain()\n")
    program.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offered", "not_offered"),
    [
        ("megatron-compete st", {"status", "study"}, {"plan"}),
        ("megatron-compete convert --ch", {"--checkpoint"}, {"--output"}),
        ("megatron-compete convert --to ", {"hf", "megatron"}, set()),
        ("megatron-compete preprocess --tokenizer-t", {"--tokenizer-type"}, {"--tokenizer-model"}),
        ("megatron-compete completion ", {"bash", "zsh", "fish"}, set()),
    ],
)
def test_bash_completes_verbs_flags_and_choices(
    line: str, offered: set[str], not_offered: set[str], folder: Path
) -> None:
    script = ASK.format(folder=folder, line=line, point=len(line), words=line, count=len(line.split(" ")) - 1)
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=60, cwd=folder, env=os.environ
    )
    found = {word.strip() for word in done.stdout.splitlines()}
    assert offered <= found and not not_offered & found, (done.stdout, done.stderr)


@pytest.mark.parametrize(("shell", "mark"), [("zsh", "compdef"), ("fish", "complete --command megatron-compete")])
def test_the_other_shells_have_a_script(shell: str, mark: str, folder: Path) -> None:
    done = subprocess.run([folder / "megatron-compete", "completion", shell], capture_output=True, text=True)
    assert done.returncode == 0 and mark in done.stdout
