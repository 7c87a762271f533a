"""The scripts as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.conftest import WriteCorpus, files_in

TOOLS = Path(__file__).parents[2] / "tools"


def run_tool(name: str, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / name), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", ["train_tokenizer.py", "preprocess_data.py"])
def test_help(name: str, tmp_path: Path) -> None:
    done = run_tool(name, "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--on-error" in done.stdout and "None" not in done.stdout


def test_from_corpus_to_dataset_and_one_line_for_a_fault(write_corpus: WriteCorpus, tmp_path: Path) -> None:
    write_corpus([{"text": "some words of text\n" * 9}, {"text": 5}])
    trained = run_tool(
        *("train_tokenizer.py", "--input", "corpus.jsonl", "--output-prefix", "out/t", "--vocab-size", "285"),
        *("--on-error", "skip"),
        folder=tmp_path,
    )
    assert trained.returncode == 0, trained.stderr
    flags = ["--input", "corpus.jsonl", "--output-prefix", "out/d", "--tokenizer-type", "SentencePieceTokenizer"]
    failed = run_tool(
        "preprocess_data.py", *flags, "--tokenizer-model", "out/t.model", "--workers", "2", folder=tmp_path
    )
    assert failed.returncode == 2
    assert failed.stderr == (
        "error: corpus.jsonl:2: 'text' holds a number and not a string: fix that, or leave such documents out with "
        "--on-error skip\n"
    )
    assert files_in(tmp_path / "out") == ["t.model", "t.vocab"]


def test_missing_corpus_answers_at_once(tmp_path: Path) -> None:
    flags = ["--input", "none.jsonl", "--output-prefix", "d", "--tokenizer-type", "NullTokenizer"]
    done = run_tool("preprocess_data.py", *flags, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: --input none.jsonl: no such file, and no file matches it as a pattern\n"
    assert files_in(tmp_path) == []
