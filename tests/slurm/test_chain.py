"""`megatron-compete submit --chain` on a real Slurm: raw text to an evaluated Hugging Face folder by one command."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from megatron_compete.data.stdlib_corpus import write_stdlib_corpus
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 24
COPIES = 4

RECIPE = {
    "launch": {"nproc-per-node": 4},
    "arguments": {
        "num-layers": 2, "hidden-size": 64, "num-attention-heads": 4, "ffn-hidden-size": 64, "moe-ffn-hidden-size": 64,
        "seq-length": 64, "max-position-embeddings": 64, "position-embedding-type": "rope", "normalization": "RMSNorm",
        "swiglu": True, "disable-bias-linear": True, "untie-embeddings-and-output-weights": True,
        "hidden-dropout": 0.0, "attention-dropout": 0.0, "make-vocab-size-divisible-by": 64,
        "num-experts": 4, "moe-router-topk": 2, "moe-token-dispatcher-type": "alltoall", "compete-rate": 0.3,
        "compete-max-active-layers": 1, "pipeline-model-parallel-size": 2, "expert-model-parallel-size": 2,
        "micro-batch-size": 4, "global-batch-size": 8, "lr": 3.0e-3, "lr-decay-style": "constant",
        "train-iters": STEPS, "save-interval": STEPS, "eval-iters": 0, "log-interval": 1, "num-workers": 0,
        "split": "100,0,0",
    },
}  # fmt: skip

SETTINGS = f"""
COMPETE_GPUS_PER_NODE=0
COMPETE_TASKS_PER_NODE=2
COMPETE_VENV={sys.prefix}
COMPETE_MPI=pmi2   # as the mpich of PyPI speaks it
COMPETE_BACKOFF_SECONDS=1
COMPETE_SIGNAL_SECONDS=60
COMPETE_TIME=30
HF_HUB_OFFLINE=1
HF_DATASETS_OFFLINE=1
OMP_NUM_THREADS=1
"""


class LoginNode:
    """A folder to submit from."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.corpus = write_stdlib_corpus(str(folder / "corpus"), max_bytes=400_000)
        (folder / "cluster.env").write_text(f"{SETTINGS}HF_HOME={folder}/cache\n")
        (folder / "small.yaml").write_text(yaml.safe_dump(RECIPE))

    def submit(self, chain: dict, *words: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "chain.yaml").write_text(yaml.safe_dump(chain, sort_keys=False))
        return subprocess.run(
            [sys.executable, "-m", "megatron_compete", "submit", "--chain", "chain.yaml", *words],
            cwd=self.folder, env=self.cluster.environment | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def run(self, name: str) -> Path:
        return self.folder / "runs" / "chain" / name

    def job_id(self, name: str) -> str:
        return str(json.loads((self.run(name) / "job.json").read_text())["job_id"])

    def finish(self, name: str, timeout: float = 900) -> str:
        """Last state of a part's job."""
        return self.cluster.finish(self.job_id(name), timeout)

    def log(self, name: str) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.run(name) / "logs").iterdir()))[-8000:]

    def outcomes(self, name: str) -> list[str]:
        return [line.split("\t")[5] for line in (self.run(name) / "attempts.tsv").read_text().splitlines()]


@pytest.fixture
def login_node(tmp_path: Path, cluster: Cluster) -> LoginNode:
    return LoginNode(tmp_path, cluster)


def preprocess(corpus: str, **arguments: object) -> dict:
    return {
        "tokenizer": {"vocab-size": 512},
        "arguments": {"input": corpus, "append-eod": True, "shard-size": 0.05, "tokenizer-engine": "reference"}
        | arguments,
    }


def test_raw_text_to_an_evaluated_model_by_one_command(login_node: LoginNode) -> None:
    chain = {
        "preprocess": {
            "nodes": 2, "tasks-per-node": 2, "cluster": {"COMPETE_LAUNCHER": "mpirun"},
            **preprocess("corpus/train.jsonl", workers=1),
        },
        "pretrain": {"recipe": "small.yaml", "nodes": 2, "tasks-per-node": 2},
        "convert": {},
        "evaluate": {"arguments": {
            "text": "corpus/heldout.jsonl", "tasks": "license_words", "include": str(ROOT / "tests/evaluation"),
            "device": "cpu", "dtype": "float32", "batch": 4,
        }},
    }  # fmt: skip
    done = login_node.submit(chain)
    assert done.returncode == 0, done.stderr
    for name in ("1-preprocess", "2-pretrain", "3-convert", "4-evaluate"):
        assert login_node.finish(name) == "COMPLETED", login_node.log(name)
        assert login_node.outcomes(name)[-1] == "finished" and (login_node.run(name) / "finished").exists()
    manifest = json.loads((login_node.run("1-preprocess") / "data/corpus_text_document.json").read_text())
    assert manifest["documents"] == login_node.corpus.train_documents
    tracker = login_node.run("2-pretrain") / "checkpoints/latest_checkpointed_iteration.txt"
    assert tracker.read_text().strip() == str(STEPS)
    results = login_node.run("4-evaluate") / "results"
    comparison = json.loads((results / "comparison.json").read_text())
    assert comparison["max_logit_difference"] < 1e-3 and comparison["same_ids"]
    assert comparison["perplexity_hf"] < 0.8 * comparison["perplexity_untrained"]
    marks = json.loads(next(results.rglob("results*.json")).read_text())["results"]
    assert 0 <= marks["license_words"]["acc,none"] <= 1
    again = login_node.submit(chain)
    assert again.returncode == 0 and again.stdout.count("finished already") == 4, again.stdout + again.stderr


def test_bad_input_stops_the_chain_and_the_same_command_goes_on_once_it_is_fixed(login_node: LoginNode) -> None:
    raw = login_node.folder / "raw.jsonl"
    raw.write_text('{"text": "broken\n')
    chain = {"preprocess": preprocess("raw.jsonl"), "pretrain": {"recipe": "small.yaml", "nodes": 2}}
    assert login_node.submit(chain, "--no-check").returncode == 0
    assert login_node.finish("1-preprocess") == "FAILED" and login_node.outcomes("1-preprocess") == ["refused"]
    assert (
        login_node.finish("2-pretrain") == "CANCELLED" and not (login_node.run("2-pretrain") / "attempts.tsv").exists()
    )
    raw.write_text((login_node.folder / "corpus/train.jsonl").read_text())
    again = login_node.submit(chain, "--no-check")
    assert again.returncode == 0 and f"afterok:{login_node.job_id('1-preprocess')}" in again.stdout
    assert login_node.finish("1-preprocess") == "COMPLETED", login_node.log("1-preprocess")
    assert login_node.cluster.job(login_node.job_id("2-pretrain"))["JobState"] in ("PENDING", "RUNNING", "CONFIGURING")


@contextlib.contextmanager
def paused(words: str) -> Iterator[list[Path]]:
    """The Python processes with these words in their command line, as folders of /proc; they stand still in the block."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (path / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            if words in command and "python" in command.split(" ")[0]:
                os.kill(int(path.name), signal.SIGSTOP)
                found.append(path)
    try:
        yield found
    finally:
        for path in found:
            os.kill(int(path.name), signal.SIGCONT)


def is_told_to_stop(process: Path) -> bool:
    """Whether SIGTERM waits for a process that stands still."""
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return bool((int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_preprocessing_that_is_stopped_goes_on_from_its_shards(login_node: LoginNode, launcher: str) -> None:
    corpus = write_stdlib_corpus(str(login_node.folder / "large"), max_bytes=6_000_000)
    (login_node.folder / "copies").mkdir()
    for copy in range(COPIES):
        shutil.copy(corpus.train_path, login_node.folder / "copies" / f"{copy}.jsonl")
    two_ranks = {"tasks-per-node": 2, "cluster": {"COMPETE_LAUNCHER": launcher}}
    assert login_node.submit({"preprocess": preprocess("copies/*.jsonl", workers=1) | two_ranks}).returncode == 0
    job_id, parts = login_node.job_id("1-preprocess"), login_node.run("1-preprocess") / "data/corpus.work/parts"
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in parts.glob("*.journal")):
        assert time.monotonic() < deadline, login_node.log("1-preprocess")
        time.sleep(0.02)
    with paused(
        f"--output-prefix {login_node.run('1-preprocess')}"
    ) as ranks:  # they would be done before they are told to stop
        assert ranks, login_node.log("1-preprocess")
        login_node.cluster.command("scancel", "--batch", "--signal=TERM", job_id)  # as at a time limit
        while not any(map(is_told_to_stop, ranks)):
            assert time.monotonic() < deadline, login_node.log("1-preprocess")
            time.sleep(0.1)
    assert login_node.finish("1-preprocess") == "COMPLETED", login_node.log("1-preprocess")
    assert login_node.outcomes("1-preprocess") == ["stopped", "finished"]
    assert "going on from " in login_node.log("1-preprocess")
    manifest = json.loads((login_node.run("1-preprocess") / "data/corpus_text_document.json").read_text())
    assert manifest["documents"] == COPIES * corpus.train_documents
