"""Jobs that really train: `megatron-compete submit` of the demo's recipe on a small corpus, and their curves."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.launch.run_files import read_steps
from megatron_compete.report.scalars import read_scalars
from tests.slurm.cluster import Cluster
from tests.slurm.runs import REPOSITORY, read_attempts

SHORT = (  # noqa: SIM905  read as flags
    "--micro-batch-size 1 --global-batch-size 4 --seq-length 64 --max-position-embeddings 64 --log-interval 1 "
    "--tensorboard-log-interval 1 --lr-decay-style constant --lr-warmup-iters 0 --eval-iters 0 --save-interval 1000 "
    "--train-iters 12"
).split()
STEPS = 12
"""Over examples/demo.yaml: its model and layout (PP=2 x EP=2), steps of a fraction of a second."""

HOLDING = """

def _holding(original):
    def forward_step(*given, **named):
        import os
        import time
        from pathlib import Path

        from megatron.training import get_args, get_signal_handler

        hold = Path(os.environ["COMPETE_RUN"], "hold")
        while hold.exists() and str(get_args().curr_iteration + 1) in hold.read_text().split():
            if get_signal_handler()._signal_received:
                break
            time.sleep(0.05)
        return original(*given, **named)

    return forward_step


forward_step = _holding(forward_step)
"""
"""Appended to a snapshot's `training/batches.py`: steps that the run's file `hold` names are not done before the rank is told
to stop. So a test meets a run where it wants to, however busy the machine is."""


@dataclass(frozen=True)
class Corpus:
    """A tokenizer and a dataset."""

    tokenizer: Path
    prefix: Path

    def arguments(self) -> list[str]:
        """The trainer's flags for it."""
        return ["--data-path", str(self.prefix), "--tokenizer-model", str(self.tokenizer)]


def make_corpus(folder: Path) -> Corpus:
    """About 30 KB of this repository's prose through the corpus tools."""
    pages = [*sorted((REPOSITORY / "docs" / "concepts").glob("*.md")), REPOSITORY / "README.md"]
    text = "\n\n".join(page.read_text() for page in pages)
    folder.mkdir(parents=True)
    documents = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    tool(
        "train_tokenizer.py",
        "--input",
        folder / "text.jsonl",
        "--output-prefix",
        folder / "tokenizer",
        "--vocab-size",
        400,
    )
    tool(
        "preprocess_data.py", "--input", folder / "text.jsonl", "--output-prefix", folder / "corpus", "--append-eod",
        "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", folder / "tokenizer.model",
    )  # fmt: skip
    prefixes = [path.with_suffix("") for path in folder.glob("corpus*.idx")]
    assert len(prefixes) == 1, sorted(folder.iterdir())
    return Corpus(folder / "tokenizer.model", prefixes[0])


def tool(name: str, *arguments: object) -> None:
    """Run one of tools/."""
    _run([sys.executable, REPOSITORY / "tools" / name, *arguments])


def _run(command: list[object], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@dataclass(frozen=True)
class TrainedRun:
    """A run folder of the real trainer."""

    folder: Path

    @property
    def script(self) -> Path:
        """What is submitted."""
        return self.folder / "submit.sbatch"

    def attempts(self) -> list[dict[str, str]]:
        """attempts.tsv."""
        return read_attempts(self.folder)

    def scalars(self) -> dict[str, dict[int, float]]:
        """TensorBoard's curves by name: {iteration: value}, of all attempts together."""
        return read_scalars(self.folder / "tensorboard")

    def logged_iterations(self) -> list[int]:
        """Iterations in the order in which all attempts logged them."""
        return [step["iteration"] for step in read_steps(self.folder)]

    def hold(self, *iterations: int) -> None:
        """Let no step of these end before the ranks are told to stop."""
        (self.folder / "hold").write_text(" ".join(map(str, iterations)))

    def release(self) -> None:
        """Hold no longer."""
        (self.folder / "hold").unlink()

    def await_iteration(self, iteration: int, seconds: float = 900.0) -> None:
        """Wait until an iteration was logged."""
        self.await_true(lambda: iteration in self.logged_iterations(), f"iteration {iteration}", seconds)

    def await_true(self, true: Callable[[], bool], what: str, seconds: float = 900.0) -> None:
        """Wait for something in this run."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"no {what} after {seconds:g} s"
            time.sleep(0.3)


def write_run(cluster: Cluster, folder: Path, corpus: Corpus, *flags: object, **settings: str) -> TrainedRun:
    """A run folder by `megatron-compete submit --dry-run` on 2 nodes x 2 tasks.

    Args:
        flags: submit's, and overrides of the recipe.
        settings: of cluster.env, without COMPETE_.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    values = {"VENV": sys.prefix, "GPUS_PER_NODE": "0", "TASKS_PER_NODE": "2", "BACKOFF_SECONDS": "1"} | settings
    env_file = folder.with_suffix(".env")
    env_file.write_text("".join(f"COMPETE_{name}={value}\n" for name, value in values.items()))
    _run(
        [sys.executable, "-m", "megatron_compete", "submit", "--recipe", REPOSITORY / "examples" / "demo.yaml",
         "--nodes", 2, "--run", folder, "--cluster", env_file, "--no-check", "--dry-run",
         *SHORT, *corpus.arguments(), *flags],
        cluster.environment | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    with open(folder / "code" / "megatron_compete" / "training" / "batches.py", "a") as batches:
        batches.write(HOLDING)
    return TrainedRun(folder)
