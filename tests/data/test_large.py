"""100 MB in several forms, by any number of workers and by MPI ranks: byte for byte what the plain loop writes.

Each form and each number once: a form is read, and work is shared out, before the two meet. `tests/data/test_preprocess.py`
pairs them, on little text.
"""

from pathlib import Path

import pytest

from benchmarks.corpora import write_corpus
from benchmarks.preprocess import run_plain
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocess import Preprocessing, preprocess
from tests.data.preprocessing.test_mpi import MPIRUN, run_ranks

pytestmark = pytest.mark.slow

FORMS = ("jsonl", "jsonl.zst", "parquet")
CORPUS_BYTES = 100_000_000
SUFFIXES = (".bin", ".idx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_model: str) -> Path:
    """The corpus in all forms, and `plain.bin` and `plain.idx`."""
    folder = tmp_path_factory.mktemp("large")
    corpora = write_corpus(folder, CORPUS_BYTES, FORMS)
    assert corpora["jsonl"].stat().st_size >= CORPUS_BYTES
    run_plain(TokenizerChoice("SentencePieceTokenizer", tokenizer_model), corpora["jsonl"], folder / "plain", 2)
    return folder


def assert_same(folder: Path, prefix: Path) -> None:
    for suffix in SUFFIXES:
        assert Path(f"{prefix}_text_document{suffix}").read_bytes() == (folder / f"plain{suffix}").read_bytes()


@pytest.mark.parametrize(("workers", "form"), zip((1, 2, 4), FORMS))
def test_workers(folder: Path, tmp_path: Path, tokenizer_model: str, form: str, workers: int) -> None:
    choice = TokenizerChoice("SentencePieceTokenizer", tokenizer_model)
    inputs = (str(folder / f"corpus.{form}"),)
    preprocess(Preprocessing(inputs, str(tmp_path / "d"), choice, append_eod=True, workers=workers))
    assert_same(folder, tmp_path / "d")


@pytest.mark.skipif(MPIRUN is None, reason="needs an MPI: pip install mpich")
def test_ranks(folder: Path, tmp_path: Path, tokenizer_model: str) -> None:
    flags = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", tokenizer_model, "--append-eod"]
    done = run_ranks(3, "--input", str(folder / "corpus.jsonl.zst"), "--output-prefix", str(tmp_path / "d"), *flags)
    assert done.returncode == 0, done.stderr
    assert_same(folder, tmp_path / "d")
