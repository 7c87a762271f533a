"""Commands of Slurm's that write down how they were called, and a folder to submit from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_compete.cli import main
from tests.warm import run_warm

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = {
    "sbatch": 'echo "sbatch $*" >>"$CALLS"; if [ -n "$REFUSE" ]; then echo "sbatch: error: $REFUSE" >&2; exit 1; fi\n'
    'wc -l <"$CALLS" | sed "s/^ */10/"',
    "squeue": 'if [ -n "$DOWN" ]; then echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; fi\n'
    'if [ -z "$QUEUE" ]; then echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; fi\n'
    'for id in ${3//,/ }; do echo "$id|$QUEUE|None|1:00|1:00:00|59:00|N/A|n1"; done',
    "scontrol": "printf 'node7\\nnode8\\n'",
}

MODEL = {
    "num-layers": 4, "hidden-size": 64, "num-attention-heads": 4, "ffn-hidden-size": 64, "seq-length": 32,
    "max-position-embeddings": 32, "num-experts": 4, "moe-router-topk": 2, "micro-batch-size": 2,
    "global-batch-size": 8, "train-iters": 10, "lr": 0.001, "save-interval": 5, "compete-rate": 0.2, "mock-data": True,
    "disable-bias-linear": True, "tokenizer-type": "NullTokenizer", "vocab-size": 127,
}  # fmt: skip
CPU = "COMPETE_GPUS_PER_NODE=0\nCOMPETE_TASKS_PER_NODE=2\n"


class LoginNode:
    """A folder with a recipe and a cluster.env, and stand-ins for Slurm on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.calls = folder, folder / "bin", folder / "calls"
        self.bin.mkdir()
        for name, body in COMMANDS.items():
            (self.bin / name).write_text(f"#!/bin/bash\n{body}\n")
            (self.bin / name).chmod(0o755)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "COMPETE"))
        }
        self.environment |= {"PATH": f"{self.bin}:{os.environ['PATH']}", "CALLS": str(self.calls), "HOME": str(folder)}
        self.environment |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(folder / "config")}
        (folder / "cluster.env").write_text(CPU)
        self.recipe()

    def recipe(self, **arguments: object) -> Path:
        path = self.folder / "small.yaml"
        path.write_text(yaml.safe_dump({"arguments": MODEL | arguments}))
        return path

    def submit(self, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """The command, in a process forked from one that has imported Megatron."""
        return run_warm(main, "submit", *map(str, words), cwd=self.folder, environment=self.environment | environment)

    def submit_afresh(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """The command in an interpreter of its own."""
        return subprocess.run(
            [sys.executable, "-m", "megatron_compete", "submit", *map(str, words)],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def submitted(self) -> list[str]:
        """Command lines of sbatch so far."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []


def said(done: subprocess.CompletedProcess[str]) -> str:
    """The one error line of a command that refused."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("error: ").strip()


@pytest.fixture
def login_node(tmp_path: Path) -> LoginNode:
    return LoginNode(tmp_path)
