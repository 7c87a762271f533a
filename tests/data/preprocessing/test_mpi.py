"""Several ranks started by mpirun."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocess import Preprocessing, preprocess
from megatron_compete.data.preprocessing import mpi
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from tests.data.inputs.files import write_jsonl

TOOL = Path(__file__).parents[3] / "tools" / "preprocess_data.py"
MPIRUN = shutil.which("mpirun", path=os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"])))


def run_ranks(ranks: int, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(MPIRUN), "-n", str(ranks), sys.executable, str(TOOL), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(MPIRUN is None, reason="needs an MPI: pip install mpich")
@pytest.mark.parametrize(("suffix", "ranks"), [(".jsonl.zst", 2), pytest.param(".jsonl", 3, marks=pytest.mark.slow)])
def test_ranks_share_a_job_that_fails_and_goes_on(
    stdlib_corpus: StdlibCorpus, tmp_path: Path, tokenizer_model: str, suffix: str, ranks: int
) -> None:
    with open(stdlib_corpus.train_path, encoding="utf-8") as stream:
        texts = [part for line in stream for part in json.loads(line)["text"].split("\n\n")]
    path = write_jsonl(tmp_path / f"c{suffix}", [*({"text": text} for text in texts), b"{"])
    flags = ["--input", str(path), "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", tokenizer_model]
    flags += ["--shard-size", "0.02", "--output-prefix", str(tmp_path / "ranks")]
    failed = run_ranks(ranks, *flags, "--tokenizer-engine", "reference")
    assert failed.returncode == 2
    errors = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(f"error: {path}:{len(texts) + 1}: not JSON")
    assert "Traceback" not in failed.stderr
    done = run_ranks(ranks, *flags, "--tokenizer-engine", "reference", "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert "in several runs" in done.stdout and done.stdout.count("wrote ") == 1
    choice = TokenizerChoice("SentencePieceTokenizer", tokenizer_model)
    alone = tmp_path / "alone"
    preprocess(Preprocessing((str(path),), str(alone), choice, engine="reference", on_error="skip"))
    for file in ("_text_document.bin", "_text_document.idx", ".errors.jsonl"):
        assert Path(f"{tmp_path}/ranks{file}").read_bytes() == Path(f"{alone}{file}").read_bytes()
    assert not (tmp_path / "ranks.work").exists()


def test_what_launchers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*mpi._SIZES, mpi._PMIX, *mpi._LOCAL_RANKS):
        monkeypatch.delenv(name, raising=False)
    assert not mpi.is_launched() and mpi.has_node_to_itself()
    monkeypatch.setenv("PMI_SIZE", "8")
    assert mpi.is_launched() and not mpi.has_node_to_itself()
    for tasks, alone in (("1(x8)", True), ("4(x2)", False)):
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
        assert mpi.has_node_to_itself() == alone


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, False),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"PMIX_RANK": "0"}, True),
        ({"PMI_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "4"}, True),  # mpirun in such a shell
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
    ],
)
def test_a_shell_that_srun_started_is_no_mpi_job(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], launched: bool) -> None:  # fmt: skip
    for name in (*mpi._SIZES, mpi._PMIX, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mpi.is_launched() == launched


def test_srun_without_mpi_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*mpi._SIZES, mpi._PMIX):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(CompeteError, match="srun started 4 tasks without MPI"):
        mpi.refuse_srun_without_mpi()
