"""README's and the guides' commands, run one after the other as written; what needs a GPU or a cluster runs dry."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.data.stdlib_corpus import write_stdlib_corpus
from tests.docs.commands import ROOT, commands_of

pytestmark = pytest.mark.slow

DRY = {"pretrain": ("DRY_RUN", "1"), "study": ("DRY_RUN", "1")}
BY_OTHERS = ("convert", "verify", "report", "audit")
"""They need a trained checkpoint or its logs: `make demo` runs them."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's files with a corpus beside them, as a reader has it."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("examples", "slurm", "tools", "megatron_compete"):
        (folder / name).symlink_to(ROOT / name)
    write_stdlib_corpus(folder / "corpus")
    (folder / "data").mkdir()
    return folder


def run(command: str, folder: Path) -> None:
    """One printed command; /shared is a folder of the reader's cluster."""
    words = shlex.split(command.replace("/shared/", f"{folder}/shared/"), comments=True)
    environment = dict(os.environ)
    if words[0] == "megatron-compete":
        key, value = DRY.get(words[1], ("COLUMNS", "120"))
        environment[key] = value
        if words[1] == "submit":
            words.append("--dry-run")
        words = [sys.executable, "-m", "megatron_compete", *words[1:]]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def verbs_of(path: str) -> list[str]:
    """The printed commands of our program that can run here, and what copies its settings."""
    commands = [command for command in commands_of(ROOT / path) if "..." not in command]
    return [c for c in commands if c.startswith(("megatron-compete ", "cp ")) and c.split()[1] not in BY_OTHERS]


def test_the_readme_from_top_to_bottom(workplace: Path) -> None:
    shared = workplace / "shared"
    for command in verbs_of("README.md"):
        if "/shared/" in command and not shared.exists():  # the reader has put data and tokenizer there
            shared.mkdir()
            for path in (workplace / "data").iterdir():
                shutil.copy(path, shared / path.name)
        run(command, workplace)
    assert (workplace / "runs/moe_30b_a3b/submit.sbatch").exists()


def test_the_guide_to_a_corpus(workplace: Path) -> None:
    made = (
        "megatron-compete tokenizer",
        "megatron-compete preprocess",
        "megatron-compete inspect",
        "megatron-compete split",
    )
    commands = [command for command in verbs_of("docs/guides/corpus.md") if command.startswith(made)]
    tokenizer = next(command for command in commands if command.startswith(made[1 - 1]))
    run(tokenizer.replace("--vocab-size 32000", "--vocab-size 8000"), workplace)  # the library is too small for more
    for command in commands:
        if command != tokenizer:
            run(command, workplace)
    for folder in ("parts", "tokenised"):
        (workplace / "data" / folder).mkdir()
        for path in (workplace / "data").glob("corpus_valid*"):
            shutil.copy(path, workplace / "data" / folder)
    for command in verbs_of("docs/guides/corpus.md"):
        if command.startswith(("megatron-compete merge", "megatron-compete blend")):
            run(command, workplace)


def test_plans(workplace: Path) -> None:
    for command in verbs_of("docs/guides/planning.md"):
        run(command, workplace)
