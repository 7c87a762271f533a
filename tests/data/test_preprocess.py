"""Datasets byte for byte as Megatron-LM's tool writes them, or not at all."""

import json
import os
import signal
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocess import Preprocessed, Preprocessing, main, preprocess
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from megatron_compete.errors import CompeteError
from tests.data.conftest import VOCAB_SIZE, WriteCorpus, files_in

DTYPE_CODES = {np.uint16: 8, np.int32: 4}
DOCUMENTS = [
    {"text": "def f(x):\n    return x\n", "title": "f"},
    {"text": "", "title": ""},
    {"text": ["one sentence. ", "", "another one."], "title": "two"},
    {"text": [], "title": "none"},
    {"text": "naïve 🙂", "title": ["a", "b"]},
]


def reference(documents: list[list[list[int]]], dtype: type[Any]) -> tuple[bytes, bytes]:
    """`.bin` and `.idx` of documents of sentences of ids, written from the description of the format."""
    sentences = [sentence for document in documents for sentence in document]
    lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int32)
    ends = np.cumsum([0, *(len(document) for document in documents)]).astype(np.int64)
    pointers = (np.cumsum(np.append(0, lengths))[:-1] * np.dtype(dtype).itemsize).astype(np.int64)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, DTYPE_CODES[dtype], len(sentences), len(ends))
    ids = np.array([token for sentence in sentences for token in sentence], dtype=dtype)
    return ids.tobytes(), header + lengths.tobytes() + pointers.tobytes() + ends.tobytes()


def tokenised(records: list[dict[str, Any]], key: str, model: str, eod: bool) -> list[list[list[int]]]:
    """What Megatron-LM's tool does to each record: sentences with tokens, the end of document on the last of them."""
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    documents = []
    for record in records:
        sentences = record[key] if isinstance(record[key], list) else [record[key]]
        document = [ids for ids in map(processor.encode, sentences) if ids]
        if eod and document:
            document[-1].append(processor.eos_id())
        documents.append(document)
    return documents


def run(path: str, prefix: Path, model: str, **options: Any) -> Preprocessed:
    choice = TokenizerChoice("SentencePieceTokenizer", model)
    return preprocess(Preprocessing((path,), str(prefix), choice, **options))


def dataset(prefix: Path, key: str = "text") -> tuple[bytes, bytes]:
    return tuple(Path(f"{prefix}_{key}_document{suffix}").read_bytes() for suffix in (".bin", ".idx"))  # type: ignore[return-value]


@pytest.mark.parametrize("eod", [True, False])
def test_bytes_are_the_references(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, eod: bool) -> None:
    done = run(write_corpus(DOCUMENTS), tmp_path / "d", tokenizer_model, append_eod=eod, json_keys=("text", "title"))
    for key in ("text", "title"):
        expected = tokenised(DOCUMENTS, key, tokenizer_model, eod)
        assert dataset(tmp_path / "d", key) == reference(expected, np.uint16)
        assert done.tokens[key] == sum(len(sentence) for document in expected for sentence in document)
    assert done.documents == len(DOCUMENTS)


def test_megatron_reads_it_back(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    prefix = run(write_corpus(DOCUMENTS), tmp_path / "d", tokenizer_model, append_eod=True).prefixes[0]
    indexed = IndexedDataset(prefix)
    expected = [sentence for document in tokenised(DOCUMENTS, "text", tokenizer_model, True) for sentence in document]
    assert [indexed[index].tolist() for index in range(len(indexed))] == expected
    assert len(indexed.document_indices) == len(DOCUMENTS) + 1


def test_large_vocabularies_take_four_bytes(write_corpus: WriteCorpus, tmp_path: Path) -> None:
    path = write_corpus([{"text": "1 69999"}, {"text": "5"}])
    choice = TokenizerChoice("NullTokenizer", vocab_size=70_000)
    preprocess(Preprocessing((path,), str(tmp_path / "d"), choice, append_eod=True))
    assert dataset(tmp_path / "d") == reference([[[1, 69_999, 69_999]], [[5, 69_999]]], np.int32)


def test_workers_change_nothing(stdlib_corpus: StdlibCorpus, tmp_path: Path, tokenizer_model: str) -> None:
    records = map(json.loads, Path(stdlib_corpus.train_path).read_text(encoding="utf-8").split("\n")[:-1])
    split = [{"text": part} for record in records for part in record["text"].split("\n\n")]
    path = tmp_path / "parts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in split))
    for workers in (1, 2):
        run(str(path), tmp_path / f"w{workers}", tokenizer_model, append_eod=True, workers=workers)
    assert dataset(tmp_path / "w1") == dataset(tmp_path / "w2")
    assert (tmp_path / "w1_text_document.json").read_bytes() == (tmp_path / "w2_text_document.json").read_bytes()
    assert dataset(tmp_path / "w1") == reference(tokenised(split, "text", tokenizer_model, True), np.uint16)


def test_manifest(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str) -> None:
    path = write_corpus([*DOCUMENTS, "{", {"title": 3}])
    run(path, tmp_path / "d", tokenizer_model, append_eod=True, on_error="skip")
    manifest = json.loads((tmp_path / "d_text_document.json").read_text())
    documents = tokenised(DOCUMENTS, "text", tokenizer_model, True)
    assert manifest == {
        "format": "megatron-compete dataset 1",
        "tokenizer_type": "SentencePieceTokenizer",
        "tokenizer_model": tokenizer_model,
        "tokenizer_sha256": TokenizerChoice("SentencePieceTokenizer", tokenizer_model).fingerprint(),
        "vocab_size": VOCAB_SIZE,
        "append_eod": True,
        "documents": 5,
        "sequences": sum(map(len, documents)),
        "tokens": sum(len(sentence) for document in documents for sentence in document),
        "inputs": [{"name": path, "bytes": os.path.getsize(path)}],
        "skipped": {"not_json": 1, "missing_key": 1},
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_malformed_lines_in_both_modes(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, workers: int
) -> None:
    good = [{"text": f"line {index}"} for index in range(100)]
    path = write_corpus([*good[:60], '{"text": "cut', *good[60:], {"text": None}])
    with pytest.raises(CompeteError, match=r"corpus\.jsonl:61: not JSON .*--on-error skip"):
        run(path, tmp_path / "d", tokenizer_model, workers=workers)
    assert files_in(tmp_path) == ["corpus.jsonl"]
    done = run(path, tmp_path / "d", tokenizer_model, workers=workers, on_error="skip")
    assert dataset(tmp_path / "d") == reference(tokenised(good, "text", tokenizer_model, False), np.uint16)
    assert dict(done.skips.counts) == {"not_json": 1, "not_text": 1}


def test_one_bad_key_leaves_the_line_out_of_all_datasets(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str
) -> None:
    path = write_corpus([{"text": "a", "title": "b"}, {"text": "c"}, {"text": "d", "title": "e"}])
    done = run(path, tmp_path / "d", tokenizer_model, json_keys=("text", "title"), on_error="skip")
    assert (done.documents, done.skips.total) == (2, 1)


def test_failure_keeps_the_older_dataset(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str) -> None:
    run(write_corpus(DOCUMENTS), tmp_path / "d", tokenizer_model)
    before = {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path) if name != "corpus.jsonl"}
    with pytest.raises(CompeteError):
        run(write_corpus([{"text": "new"}, "{"]), tmp_path / "d", tokenizer_model)
    assert {name: (tmp_path / name).read_bytes() for name in files_in(tmp_path) if name != "corpus.jsonl"} == before
    run(write_corpus([{"text": "new"}]), tmp_path / "d", tokenizer_model)
    assert dataset(tmp_path / "d") == reference(tokenised([{"text": "new"}], "text", tokenizer_model, False), np.uint16)


def test_termination_cleans_up(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_compete.data import preprocess as module

    path = write_corpus(DOCUMENTS)
    monkeypatch.setattr(module, "_write_documents", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        main(flags(path, tmp_path / "d", tokenizer_model))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert files_in(tmp_path) == ["corpus.jsonl"]


def flags(path: str, prefix: Path, model: str) -> list[str]:
    tokenizer = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", model]
    return ["--input", path, "--output-prefix", str(prefix), *tokenizer]


def test_command_line(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_corpus([*DOCUMENTS, "{"])
    more = ["--append-eod", "--workers", "1", "--log-interval", "3", "--on-error", "skip"]
    main([*flags(path, tmp_path / "d", tokenizer_model), *more])
    captured = capsys.readouterr()
    progress = [line for line in captured.out.splitlines() if line.startswith("tokenising: ")]
    assert [line.split(" (")[0] for line in progress] == ["tokenising: 3 documents", "tokenising: 6 documents"]
    tokens = json.loads((tmp_path / "d_text_document.json").read_text())["tokens"]
    summary = captured.out.splitlines()[-1]
    assert f"5 documents, {tokens} tokens (text), {os.path.getsize(path)} bytes read at" in summary
    assert summary.endswith("skipped 1 lines (1 not_json)")
    assert captured.err.startswith("skipped 1 not_json, the first at")
    expected = tokenised(DOCUMENTS, "text", tokenizer_model, True)
    assert dataset(tmp_path / "d") == reference(expected, np.uint16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"log_interval": 0}, "--log-interval 0"),
        ({"json_keys": ("text", "text")}, "name each key once"),
        ({"output_prefix": "folder/"}, "--output-prefix folder/ is a folder"),
    ],
)
def test_values_that_cannot_be_used(change: dict[str, Any], words: str) -> None:
    job: dict[str, Any] = {"inputs": ("x",), "output_prefix": "y", "tokenizer": TokenizerChoice("NullTokenizer")}
    with pytest.raises(CompeteError, match=words):
        Preprocessing(**(job | change))


def test_no_eod_to_append(write_corpus: WriteCorpus, tmp_path: Path, stdlib_corpus: StdlibCorpus) -> None:
    model = tmp_path / "no_eos.model"
    with open(model, "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some words to learn from"]),
            model_writer=stream,
            vocab_size=20,
            model_type="bpe",
            eos_id=-1,
            minloglevel=2,
        )
    with pytest.raises(CompeteError, match=r"--append-eod, but .* has no end-of-document id"):
        run(write_corpus(DOCUMENTS), tmp_path / "d", str(model), append_eod=True)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_corpus_without_tokens(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, on_error: str) -> None:
    path = write_corpus([{"text": ""}, *(["{"] if on_error == "skip" else [])])
    with pytest.raises(CompeteError, match="no document with any text under 'text'"):
        run(path, tmp_path / "d", tokenizer_model, on_error=on_error)
    assert files_in(tmp_path) == ["corpus.jsonl"]


def test_place_that_cannot_be_written_to(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str) -> None:
    path = write_corpus(DOCUMENTS)
    with pytest.raises(CompeteError, match=r"corpus\.jsonl"):
        run(path, Path(path) / "below_a_file", tokenizer_model)
