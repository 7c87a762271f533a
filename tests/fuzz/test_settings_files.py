"""Damaged recipes, chains, studies and cluster.env: taken for what they say, or refused in one line with the place."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_compete.cluster.chain_file import read_chain, section_settings
from megatron_compete.cluster.env_file import read_env_file
from megatron_compete.cluster.pretrain_job import recipe_text
from megatron_compete.cluster.settings import Settings, settings_to_keep
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import read_recipe
from megatron_compete.study.config import read_study
from megatron_compete.study.grid import runs_of
from megatron_compete.study.slurm import sbatch_options
from tests.fuzz.damage import Read, failure, fuzz, kept

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
RECIPES = [path.read_bytes() for path in (EXAMPLES / "demo.yaml", EXAMPLES / "moe_30b_a3b.yaml")]
CHAINS = [(EXAMPLES / "chain_demo.yaml").read_bytes()]
STUDIES = [path.read_bytes() for path in sorted((EXAMPLES / "studies").glob("*.yaml"))]
SETTINGS = [
    re.sub(rb"(?m)^#(?=[A-Z_]+=)", b"", (ROOT / "slurm/cluster.env.example").read_bytes()),
    b"# it's mine\nexport A=\"$HOME/b c\" # not 'this'\nCOMPETE_TIME=1:00:00\nB='$A'\nC=${A}x~:~/y\nCOMPETE_SBATCH=\"--mem=0\"\n",
]


def read_recipe_file(path: Path) -> None:
    """Every value reaches the command line as text, and a resolved recipe reads back as it was."""
    recipe = read_recipe(path)
    _check_words(recipe.command())
    again = path.with_name("resolved.yaml")
    again.write_text(recipe_text(recipe))
    assert read_recipe(again) == recipe


def read_chain_file(path: Path) -> None:
    for kind, section in read_chain(path, path.parent).items():
        settings = section_settings(kind, section, {})
        _check_words(settings.values.values())
        assert bash_reads(settings.text()).items() >= settings.values.items()


def read_study_file(path: Path) -> None:
    study = read_study(path)
    _check_words(sbatch_options(study.slurm))
    for run in runs_of(study):
        _check_words(run.recipe.command())


def read_settings_file(path: Path) -> None:
    """What bash makes of the file is what we made of it, and so of what is kept of it."""
    values = read_env_file(path)
    shown = bash_reads(path.read_text())
    assert {key: shown.get(key) for key in values} == values
    settings = Settings.of(settings_to_keep(path))
    assert bash_reads(settings.text()).items() >= settings.values.items()


def bash_reads(text: str) -> dict[str, str]:
    """Variables that a shell has after sourcing `text`; commands in it would fail, there is no PATH."""
    environment = {"HOME": os.environ["HOME"], "PATH": "/nowhere"}
    script = (
        'set -a; . /dev/stdin; while IFS= read -r name; do printf "%s=%s\\0" "$name" "${!name}"; done < <(compgen -e)'
    )
    done = subprocess.run(["/bin/bash", "-c", script], input=text.encode(), env=environment, capture_output=True)
    assert not done.stderr, done.stderr
    return dict(one.split("=", 1) for one in done.stdout.decode().split("\0") if one)


def _check_words(words: object) -> None:
    for word in words:  # type: ignore[attr-defined]
        assert isinstance(word, str) and "\0" not in word
        word.encode()


READERS = {
    "recipe": (RECIPES, read_recipe_file),
    "chain": (CHAINS, read_chain_file),
    "study": (STUDIES, read_study_file),
    "cluster-env": (SETTINGS, read_settings_file),
}


def reader(name: str, folder: Path) -> Read:
    """Reads bytes from a file; a refusal must name the file, and a line where there is one to name."""

    def read(data: bytes) -> None:
        path = folder / "input"
        path.write_bytes(data)
        try:
            READERS[name][1](path)
        except CompeteError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
            raise

    return read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Beside the recipes that studies name."""
    place = tmp_path / "studies"
    place.mkdir()
    (tmp_path / "demo.yaml").write_bytes(RECIPES[0])
    for path in EXAMPLES.glob("*.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shutil.copytree(EXAMPLES / "studies" / "recipes", place / "recipes")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_damaged_files(name: str, folder: Path) -> None:
    assert fuzz(name, READERS[name][0], reader(name, folder), inputs=90, seconds=20.0) > 0


@pytest.mark.parametrize("name", READERS)
def test_good_files(name: str, folder: Path) -> None:
    for data in READERS[name][0]:
        reader(name, folder)(data)


@pytest.mark.parametrize(
    "path", [path for name in READERS for path in kept(name)], ids=lambda path: f"{path.parent.name}-{path.name}"
)
def test_what_once_failed(path: Path, folder: Path) -> None:
    assert failure(reader(path.parent.name, folder), path.read_bytes()) is None
