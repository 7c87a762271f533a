"""What the tests of the corpus tools share: a small real corpus, a tokenizer trained on it, and file helpers."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from megatron_compete.data.stdlib_corpus import StdlibCorpus, write_stdlib_corpus
from megatron_compete.data.tokenizer import TokenizerTraining, train_tokenizer

VOCAB_SIZE = 1000

WriteCorpus = Callable[[Iterable[object]], str]


@pytest.fixture(scope="session")
def stdlib_corpus(tmp_path_factory: pytest.TempPathFactory) -> StdlibCorpus:
    """About 400 kB of standard library sources."""
    return write_stdlib_corpus(str(tmp_path_factory.mktemp("corpus")), max_bytes=400_000)


@pytest.fixture(scope="session")
def tokenizer_model(stdlib_corpus: StdlibCorpus, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SentencePiece model of `VOCAB_SIZE` pieces."""
    prefix = str(tmp_path_factory.mktemp("tokenizer") / "tokenizer")
    return train_tokenizer(TokenizerTraining((stdlib_corpus.train_path,), prefix, VOCAB_SIZE)).model_path


@pytest.fixture
def write_corpus(tmp_path: Path) -> WriteCorpus:
    """Writes `corpus.jsonl`: a str or bytes entry as it is, anything else as JSON."""

    def write(records: Iterable[object]) -> str:
        path = tmp_path / "corpus.jsonl"
        with open(path, "wb") as stream:
            for record in records:
                raw = record.encode() if isinstance(record, str) else record
                stream.write((raw if isinstance(raw, bytes) else json.dumps(raw).encode()) + b"\n")
        return str(path)

    return write


def files_in(folder: Path) -> list[str]:
    """Names of all files in `folder`, hidden ones too."""
    return sorted(path.name for path in folder.iterdir() if path.is_file())
