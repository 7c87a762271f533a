"""The wheel in an environment that has its dependencies and no checkout, used from an unrelated folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.cli.verbs import VERBS
from tests.cli.test_cli import ROOT, TOOLS

pytestmark = pytest.mark.slow

TEXT = "It was the best of times, it was the worst of times, line {}.\n"
SMALL = """--nproc-per-node 1 --pipeline-model-parallel-size 1 --expert-model-parallel-size 1 --train-iters 2
--num-layers 2 --hidden-size 32 --seq-length 32 --max-position-embeddings 32 --ffn-hidden-size 32 --moe-ffn-hidden-size 32
--lr-warmup-iters 0 --eval-iters 0 --save-interval 2 --log-interval 1 --compete-rate 0.5"""


class Installed:
    """A virtual environment with the wheel, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.venv, self.work = folder / "venv", folder / "work"
        self.work.mkdir()
        source = folder / "source"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__"))
        self._run(
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(folder),
            str(source),
        )
        self._run(sys.executable, "-m", "venv", "--without-pip", str(self.venv))
        (wheel,) = folder.glob("*.whl")
        self._run(sys.executable, "-m", "pip", "--python", f"{self.venv}/bin/python", "install", "-q", "--no-deps", "--no-index", str(wheel))  # fmt: skip
        shutil.rmtree(source)
        # Plain paths: the .pth files in it, an editable install's for one, are not read.
        (packages,) = self.venv.glob("lib/python*/site-packages")
        (packages / "dependencies.pth").write_text(
            "".join(f"{path}\n" for path in sys.path if path.endswith("-packages"))
        )

    def __call__(self, *words: str) -> str:
        """`megatron-compete WORDS`; what it printed."""
        return self._run(f"{self.venv}/bin/megatron-compete", *words)

    def tool(self, name: str, *words: str) -> str:
        """A script of the wheel's tools/."""
        return self._run(f"{self.venv}/bin/python", f"{self.venv}/share/megatron-compete/tools/{name}", *words)

    def _run(self, *command: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("wheel"))


def test_every_verb_and_tool_has_help(installed: Installed) -> None:
    where = installed._run(
        f"{installed.venv}/bin/python", "-c", "import megatron_compete; print(megatron_compete.__file__)"
    )
    assert where.startswith(str(installed.venv))
    for verb in VERBS:
        assert f"usage: megatron-compete {verb.name} " in installed(verb.name, "--help")
    for tool in TOOLS:
        assert "usage: megatron-compete " in installed.tool(tool.name, "--help")


def test_text_becomes_a_model_and_comes_back(installed: Installed) -> None:
    work = installed.work
    (work / "text.txt").write_text("".join(TEXT.format(number) for number in range(2000)))
    installed("tokenizer", "--input", "text.txt", "--output-prefix", "t", "--vocab-size", "300")
    tokenizer = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", "t.model"]
    installed.tool("preprocess_data.py", "--input", "text.txt", "--output-prefix", "d", "--append-eod", *tokenizer)
    assert "1 documents" in installed("inspect", "d_text_document")
    recipe = installed.venv / "share" / "megatron-compete" / "examples" / "demo.yaml"
    installed(
        "pretrain", "--recipe", str(recipe), *SMALL.split(), "--data-path", f"{work}/d_text_document", "--split", "100,0,0",
        "--data-cache-path", f"{work}/cache", "--tokenizer-model", f"{work}/t.model", "--save", f"{work}/run",
    )  # fmt: skip
    assert "wrote hf from run/iter_0000002" in installed(
        "convert", "--to", "hf", "--checkpoint", "run", "--output", "hf"
    )
    installed("convert", "--to", "megatron", "--checkpoint", "hf", "--output", "back")
    installed("verify", "--checkpoint", "back", "--hf", "hf", "--read")
    installed("convert", "--to", "hf", "--checkpoint", "back", "--output", "again")
    assert (work / "hf/model.safetensors").read_bytes() == (work / "again/model.safetensors").read_bytes()
