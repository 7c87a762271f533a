"""Datasets byte for byte as Megatron-LM's tool writes them, or not at all."""

import argparse
import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.engines import EngineChoice, EngineDiffers
from megatron_compete.data.inputs import InputOptions
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocess import Preprocessed, Preprocessing, main, preprocess
from megatron_compete.data.preprocessing import folder as folder_module
from megatron_compete.data.preprocessing import run as run_module
from megatron_compete.data.preprocessing import workers as workers_module
from megatron_compete.data.preprocessing.shard import ShardWorker
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from tests.data.conftest import VOCAB_SIZE, WriteCorpus, files_in
from tests.data.inputs.files import write_jsonl, write_parquet
from tests.data.tokenizer_kinds import EOS, hugging_face_folder, train_byte_level, with_a_hole

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


def run(path: str | Path, prefix: Path, model: str, **options: Any) -> Preprocessed:
    choice = TokenizerChoice("SentencePieceTokenizer", model)
    return preprocess(Preprocessing((str(path),), str(prefix), choice, **{"engine": "reference"} | options))


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


@pytest.fixture(scope="module")
def parts(stdlib_corpus: StdlibCorpus) -> list[dict[str, str]]:
    """Some thousand documents, from a word to many lines."""
    with open(stdlib_corpus.train_path, encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    return [{"text": part} for text in texts for part in text.split("\n\n")]


@pytest.mark.parametrize(
    "form", ["jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz", "jsonl.lz4", "parquet", "files"]
)
def test_forms_workers_and_shards_change_nothing(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str, form: str
) -> None:
    path = tmp_path / f"c.{form}"
    if form == "parquet":
        write_parquet(path, {"text": [part["text"] for part in parts]}, 50)
    elif form == "files":
        path.mkdir()
        for index in range(0, len(parts), 20):
            write_jsonl(path / f"{index:06d}.jsonl", parts[index : index + 20])
    else:
        write_jsonl(path, parts)
    expected = reference(tokenised(parts, "text", tokenizer_model, True), np.uint16)
    for workers, shard_bytes in ((1, None), (2, 10_000), (4, 30_000)):
        prefix = tmp_path / f"w{workers}"
        done = run(path, prefix, tokenizer_model, append_eod=True, workers=workers, shard_bytes=shard_bytes)
        assert dataset(prefix) == expected
        assert done.documents == len(parts)
        assert not os.path.exists(f"{prefix}.work")


def test_plain_text(tmp_path: Path, tokenizer_model: str) -> None:
    for name, text in (("a.txt", "one\n\ntwo\nlines\n\n\n"), ("b.txt", "three\n")):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    for reading, texts in (
        ("file", ["one\n\ntwo\nlines\n\n\n", "three\n"]),
        ("blank-line", ["one", "two\nlines", "three"]),
    ):
        run(tmp_path / "texts", tmp_path / "d", tokenizer_model, reading=InputOptions("auto", reading), restart=True)  # type: ignore[arg-type]
        expected = tokenised([{"text": text} for text in texts], "text", tokenizer_model, False)
        assert dataset(tmp_path / "d") == reference(expected, np.uint16)
    with pytest.raises(CompeteError, match=r"plain text like .*a\.txt has one text"):
        run(tmp_path / "texts", tmp_path / "e", tokenizer_model, json_keys=("a", "b"))


def test_the_default_engine_gives_the_same(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", parts)
    run(path, tmp_path / "d", tokenizer_model, engine="auto", workers=2, shard_bytes=50_000)
    assert dataset(tmp_path / "d") == reference(tokenised(parts, "text", tokenizer_model, False), np.uint16)
    assert "tokenizer engine: split, exact by construction" in capsys.readouterr().out
    engine = json.loads((tmp_path / "d_text_document.json").read_text())["engine"]
    assert (engine["name"], engine["requested"], engine["proof"], engine["checked"]) == ("split", "auto", None, 0)


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
        "empty_documents": 2,
        "engine": {
            **{"name": "reference", "requested": "reference", "proof": None, "passed_over": {}},
            **{"checked": 0, "differing": 0},
        },
        "tokenizer_options": {},
        "job": manifest["job"],
    }
    assert len(manifest["job"]) == 64


@pytest.mark.parametrize("workers", [1, 2])
def test_malformed_lines_in_both_modes(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, workers: int
) -> None:
    good = [{"text": f"line {index}"} for index in range(100)]
    path = write_corpus([*good[:60], '{"text": "cut', *good[60:], {"text": None}])
    options: dict[str, Any] = {"workers": workers, "shard_bytes": 500}
    with pytest.raises(CompeteError, match=r"corpus\.jsonl:(61: not JSON|102: 'text' holds null).*--on-error skip"):
        run(path, tmp_path / "d", tokenizer_model, **options)
    assert files_in(tmp_path) == ["corpus.jsonl"]
    done = run(path, tmp_path / "d", tokenizer_model, on_error="skip", **options)
    assert dataset(tmp_path / "d") == reference(tokenised(good, "text", tokenizer_model, False), np.uint16)
    assert dict(done.skips.counts) == {"not_json": 1, "not_text": 1}
    report = [json.loads(line) for line in (tmp_path / "d.errors.jsonl").read_text().splitlines()]
    assert [(one["file"], one["line"], one["kind"]) for one in report] == [
        (path, 61, "not_json"),
        (path, 102, "not_text"),
    ]
    assert done.skips.report()[0].startswith(f"skipped 1 not_json, the first at {path}:61: ")


def test_a_list_of_errors_goes_with_its_dataset(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str
) -> None:
    run(write_corpus([*DOCUMENTS, "{"]), tmp_path / "d", tokenizer_model, on_error="skip")
    assert "d.errors.jsonl" in files_in(tmp_path)
    run(write_corpus(DOCUMENTS), tmp_path / "d", tokenizer_model, on_error="skip")
    assert "d.errors.jsonl" not in files_in(tmp_path)


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz", "lz4"])
def test_a_truncated_archive(parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str, suffix: str) -> None:
    path = write_jsonl(tmp_path / f"c.jsonl.{suffix}", parts * 5)
    path.write_bytes(path.read_bytes()[:-20_000])
    options: dict[str, Any] = {"workers": 2, "shard_bytes": 100_000}
    with pytest.raises(CompeteError, match=rf"c\.jsonl\.{suffix}:\d+: the \.{suffix} file is cut off"):
        run(path, tmp_path / "d", tokenizer_model, **options)
    done = run(path, tmp_path / "d", tokenizer_model, on_error="skip", **options)
    assert dict(done.skips.counts) == {"damaged": 1}
    assert done.skips.summary() == "skipped 0 documents and the rest of 1 damaged file"
    assert 0 < done.documents < len(parts * 5)
    (error,) = map(json.loads, (tmp_path / "d.errors.jsonl").read_text().splitlines())
    assert error["line"] == done.documents + 1
    expected = tokenised((parts * 5)[: done.documents], "text", tokenizer_model, False)
    assert dataset(tmp_path / "d") == reference(expected, np.uint16)


def test_parquet_faults(tmp_path: Path, tokenizer_model: str) -> None:
    path = write_parquet(tmp_path / "c.parquet", {"text": ["a", "b", None, "d", "e", None]}, 2)
    with pytest.raises(CompeteError, match=r"c\.parquet:row 3: 'text' holds null"):
        run(path, tmp_path / "d", tokenizer_model, shard_bytes=1)
    run(path, tmp_path / "d", tokenizer_model, shard_bytes=1, on_error="skip")
    report = [json.loads(line) for line in (tmp_path / "d.errors.jsonl").read_text().splitlines()]
    assert [(one["row"], one["kind"]) for one in report] == [(3, "not_text"), (6, "not_text")]
    with pytest.raises(CompeteError, match=r"c\.parquet: no column 'other' \(it has 'text'\)"):
        run(path, tmp_path / "e", tokenizer_model, json_keys=("other",))
    (tmp_path / "f.parquet").write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CompeteError, match=r"f\.parquet: the Parquet file is cut off or corrupt"):
        run(tmp_path / "f.parquet", tmp_path / "e", tokenizer_model)


def test_empty_documents(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str) -> None:
    path = write_corpus(DOCUMENTS)
    assert run(path, tmp_path / "d", tokenizer_model).empty == 2
    with pytest.raises(CompeteError, match=r"corpus\.jsonl:2: a document without tokens under 'text'"):
        run(path, tmp_path / "e", tokenizer_model, empty_documents="reject")
    done = run(path, tmp_path / "e", tokenizer_model, empty_documents="reject", on_error="skip")
    assert (done.documents, done.empty, dict(done.skips.counts)) == (3, 0, {"empty": 2})


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


def test_a_stop_finishes_the_shard_in_hand_and_the_same_command_continues(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", parts)
    command = [*flags(str(path), tmp_path / "d", tokenizer_model), "--workers", "1", "--shard-size", "0.02"]
    shards = -(-os.path.getsize(path) // 20_000)
    finished, run_shard = [], ShardWorker.run

    def run_and_be_told(worker: ShardWorker, shard: Any) -> Any:
        if len(finished) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        record = run_shard(worker, shard)
        finished.append(record.key)
        return record

    monkeypatch.setattr(ShardWorker, "run", run_and_be_told)
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 75
    assert len(finished) == 4 and signal.getsignal(signal.SIGTERM) is handler
    assert files_in(tmp_path) == ["c.jsonl"]
    with pytest.raises(CompeteError, match=r"d\.work holds an unfinished run, and since then --append-eod changed"):
        main([*command, "--append-eod"])
    main(command)
    assert len(finished) == len(set(finished)) == shards
    assert dataset(tmp_path / "d") == reference(tokenised(parts, "text", tokenizer_model, False), np.uint16)
    main(command)  # nothing to do
    assert len(finished) == shards
    main([*command, "--restart"])
    assert len(finished) == 2 * shards


@pytest.mark.parametrize("change", ["content", "size", "time", "order"])
def test_changed_input_is_refused(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str, change: str
) -> None:
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", parts[:50]) for name in "ab"]
    paths[1].write_bytes(paths[1].read_bytes() + b"{\n")
    choice = TokenizerChoice("SentencePieceTokenizer", tokenizer_model)
    inputs = tuple(map(str, paths))
    options: dict[str, Any] = {"engine": "reference", "shard_bytes": 2000}
    with pytest.raises(CompeteError, match="not JSON"):
        preprocess(Preprocessing(inputs, str(tmp_path / "d"), choice, **options))
    state = paths[0].stat()
    if change == "order":
        inputs = inputs[::-1]
    elif change == "time":
        os.utime(paths[0], ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    else:
        content = paths[0].read_bytes()
        paths[0].write_bytes(content.replace(b"text", b"TEXT", 1) if change == "content" else content + b"\n")
        os.utime(paths[0], ns=(state.st_atime_ns, state.st_mtime_ns))
    words = "the order of the inputs changed" if change == "order" else rf"the {change}.* of input .*a\.jsonl changed"
    with pytest.raises(CompeteError, match=rf"d\.work holds an unfinished run, and since then {words}.*--restart"):
        preprocess(Preprocessing(inputs, str(tmp_path / "d"), choice, on_error="skip", **options))
    done = preprocess(Preprocessing(inputs, str(tmp_path / "d"), choice, on_error="skip", restart=True, **options))
    assert done.continued == 0


def test_skipping_goes_on_from_what_failing_left(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str
) -> None:
    path = write_corpus([{"text": f"line {index}"} for index in range(100)] + ["{"])
    options: dict[str, Any] = {"shard_bytes": 500}
    with pytest.raises(CompeteError, match="not JSON"):
        run(path, tmp_path / "d", tokenizer_model, **options)
    done = run(path, tmp_path / "d", tokenizer_model, on_error="skip", **options)
    assert done.continued > 0 and done.documents == 100


def test_damaged_parts_are_made_again(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str) -> None:
    records = [{"text": f"line {index}"} for index in range(100)]
    path = write_corpus([*records, "{"])
    with pytest.raises(CompeteError):
        run(path, tmp_path / "d", tokenizer_model, shard_bytes=500)
    (ids,) = (tmp_path / "d.work" / "parts").glob("*.0.bin")
    content = bytearray(ids.read_bytes())
    content[0] ^= 1
    ids.write_bytes(content)
    done = run(path, tmp_path / "d", tokenizer_model, shard_bytes=500, on_error="skip")
    assert done.continued == len(list(range(0, os.path.getsize(path), 500))) - 2
    assert dataset(tmp_path / "d") == reference(tokenised(records, "text", tokenizer_model, False), np.uint16)


def test_a_full_disk_loses_nothing_that_is_finished(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", parts)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))  # as good as a full disk
    try:
        with pytest.raises(CompeteError, match="the same command goes on from the shards that are finished"):
            run(path, tmp_path / "d", tokenizer_model, shard_bytes=20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    done = run(path, tmp_path / "d", tokenizer_model, shard_bytes=20_000)
    assert done.continued > 0
    assert dataset(tmp_path / "d") == reference(tokenised(parts, "text", tokenizer_model, False), np.uint16)


def test_two_runs_at_a_time_are_refused(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(folder_module, "LOCK_SECONDS", 0.0)
    (tmp_path / "d.work").mkdir()
    with open(tmp_path / "d.work" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CompeteError, match=r"d\.work is in use: another run"):
            run(write_corpus(DOCUMENTS), tmp_path / "d", tokenizer_model)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_engine_that_differs_is_dismissed(
    parts: list[dict[str, str]],
    tmp_path: Path,
    tokenizer_model: str,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = EngineChoice("kitoken", "kitoken", {"documents": 1, "bytes": 1, "strings": 0, "difference": None})
    make = workers_module.make_encoder

    class LateDifference:
        """Wrong throughout, and caught in the fifth batch."""

        checked = batches = 0

        def start_shard(self, shard: int) -> None:
            pass

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            self.batches += 1
            if self.batches == 5:
                raise EngineDiffers("kitoken gives another id")
            return [[7] for _ in texts]

    monkeypatch.setattr(
        workers_module,
        "make_encoder",
        lambda choice, tokenizer, engine: LateDifference() if engine == wrong else make(choice, tokenizer, engine),
    )
    monkeypatch.setattr(run_module, "choose_engine", lambda *_: wrong)
    path = write_jsonl(tmp_path / "c.jsonl.zst", parts)
    run(path, tmp_path / "d", tokenizer_model, engine="kitoken", workers=workers, shard_bytes=20_000)
    assert dataset(tmp_path / "d") == reference(tokenised(parts, "text", tokenizer_model, False), np.uint16)
    engine = json.loads((tmp_path / "d_text_document.json").read_text())["engine"]
    assert (engine["name"], engine["requested"]) == ("reference", "kitoken")
    assert "all shards are done with the reference now" in capsys.readouterr().err


def test_an_unfinished_run_whose_default_engine_was_only_sampled(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As versions before 0.2.0 left it: its shards are made again."""
    pytest.importorskip("kitoken")
    sampled = EngineChoice("kitoken", "auto", {"documents": 1, "bytes": 1, "strings": 0, "difference": None})
    path = write_jsonl(tmp_path / "c.jsonl", [*parts, b"{"])
    monkeypatch.setattr(run_module, "choose_engine", lambda *_: sampled)
    with pytest.raises(CompeteError, match="not JSON"):
        run(path, tmp_path / "d", tokenizer_model, engine="auto", shard_bytes=20_000)
    monkeypatch.undo()
    done = run(path, tmp_path / "d", tokenizer_model, engine="auto", shard_bytes=20_000, on_error="skip")
    assert not done.continued
    assert dataset(tmp_path / "d") == reference(tokenised(parts, "text", tokenizer_model, False), np.uint16)
    assert json.loads((tmp_path / "d_text_document.json").read_text())["engine"]["name"] == "split"


def test_an_engine_that_is_only_sampled_cannot_read_a_pipe(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", parts)
    with _standard_input(path), pytest.raises(CompeteError, match="--tokenizer-engine kitoken with a pipe"):
        run("-", tmp_path / "d", tokenizer_model, engine="kitoken")


def test_a_worker_that_is_killed_ends_the_run_and_loses_its_shard_alone(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", parts)
    parent, run_shard = os.getpid(), ShardWorker.run

    def run_or_die(worker: ShardWorker, shard: Any) -> Any:
        if shard.key == (0, 7) and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return run_shard(worker, shard)

    monkeypatch.setattr(ShardWorker, "run", run_or_die)
    options: dict[str, Any] = {"workers": 2, "shard_bytes": 20_000}
    with pytest.raises(CompeteError, match=r"worker-\d of 2 was killed by SIGKILL, .*the same command goes on"):
        run(path, tmp_path / "d", tokenizer_model, **options)
    monkeypatch.undo()
    assert run(path, tmp_path / "d", tokenizer_model, **options).continued >= 5
    assert dataset(tmp_path / "d") == reference(tokenised(parts, "text", tokenizer_model, False), np.uint16)


@pytest.mark.parametrize("workers", [1, 2])
def test_standard_input_can_be_given_again(
    parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str, workers: int
) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [*parts, b"{"])
    options: dict[str, Any] = {"workers": workers, "shard_bytes": 20_000}
    with _standard_input(path), pytest.raises(CompeteError, match=rf"<stdin>:{len(parts) + 1}: not JSON"):
        run("-", tmp_path / "d", tokenizer_model, **options)
    for change, words in ((lambda raw: b"x" + raw, "block 1 differs"), (lambda raw: raw[:30_000], "shorter|differs")):
        write_jsonl(tmp_path / "other.jsonl", [])
        (tmp_path / "other.jsonl").write_bytes(change(path.read_bytes()))
        with _standard_input(tmp_path / "other.jsonl"), pytest.raises(CompeteError, match=words):
            run("-", tmp_path / "d", tokenizer_model, on_error="skip", **options)
    with _standard_input(path):
        done = run("-", tmp_path / "d", tokenizer_model, on_error="skip", **options)
    assert done.continued > 0
    assert dataset(tmp_path / "d") == reference(tokenised(parts, "text", tokenizer_model, False), np.uint16)


@contextlib.contextmanager
def _standard_input(path: Path) -> Any:
    """A file at file descriptor 0."""
    kept, opened = os.dup(0), os.open(path, os.O_RDONLY)
    os.dup2(opened, 0)
    try:
        with open(0, closefd=False) as stream, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", stream)
            yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(opened)


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
    assert [line.split(" (")[0] for line in progress] == ["tokenising: 5 documents"]
    tokens = json.loads((tmp_path / "d_text_document.json").read_text())["tokens"]
    summary = captured.out.splitlines()[-1]
    assert (
        f"5 documents, {tokens} tokens (text), 2 documents without tokens kept, {os.path.getsize(path)} bytes"
        in summary
    )
    assert summary.endswith("skipped 1 documents (1 not_json)")
    assert captured.err.startswith("skipped 1 not_json, the first at")
    expected = tokenised(DOCUMENTS, "text", tokenizer_model, True)
    assert dataset(tmp_path / "d") == reference(expected, np.uint16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"workers": 0}, "--workers 0"),
        ({"log_interval": 0}, "--log-interval 0"),
        ({"json_keys": ("text", "text")}, "name each key once"),
        ({"shard_bytes": 0}, "--shard-size"),
        ({"output_prefix": "folder/"}, "--output-prefix folder/ is a folder"),
    ],
)
def test_values_that_cannot_be_used(change: dict[str, Any], words: str) -> None:
    job: dict[str, Any] = {"inputs": ("x",), "output_prefix": "y", "tokenizer": TokenizerChoice("NullTokenizer")}
    with pytest.raises(CompeteError, match=words):
        Preprocessing(**(job | change))


def test_megatrons_flags_that_have_no_effect_are_explained_and_others_refused(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = flags(write_corpus(DOCUMENTS), tmp_path / "d", tokenizer_model)
    main([*command, "--partitions", "2", "--tokenizer-engine", "reference"])
    assert capsys.readouterr().err.startswith("--partitions is not needed")
    with pytest.raises(
        CompeteError, match="--split-sentences is not for this tool: sentences are for BERT: split before"
    ):
        main([*command, "--split-sentences"])


# get_args() of Megatron-LM 0.19's tools/preprocess_data.py, which is in no wheel.
MEGATRON_LM_FLAGS = [
    "--input",
    "--json-keys",
    "--split-sentences",
    "--keep-newlines",
    "--append-eod",
    "--lang",
    "--output-prefix",
    "--workers",
    "--find-optimal-num-workers",
    "--workers-to-check",
    "--max-documents",
    "--performance-dir",
    "--partitions",
    "--log-interval",
    "--keep-sequential-samples",
]


def test_every_flag_of_megatrons_tool_is_taken_or_refused_with_a_reason() -> None:
    from megatron.training.arguments import _add_tokenizer_args

    tokenizer = argparse.ArgumentParser(add_help=False)
    _add_tokenizer_args(tokenizer)
    flags = MEGATRON_LM_FLAGS + [name for action in tokenizer._actions for name in action.option_strings]
    taken = main.parser()._option_string_actions
    assert len(flags) > 30 and set(flags) <= taken.keys()
    refused = [name for name in flags if taken[name].metavar == ""]
    assert {"--lang", "--max-documents", "--chat-template", "--padded-vocab-size"} < set(refused)
    for name in refused:
        with pytest.raises(CompeteError, match=rf"^{name} is not for this tool: \w"):
            main.parse([name, "1"])


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


def test_a_file_of_which_nothing_could_be_used_is_named(tmp_path: Path, tokenizer_model: str) -> None:
    (tmp_path / "c").mkdir()
    write_jsonl(tmp_path / "c" / "a.jsonl", [{"text": "a"}, b"{"])
    write_jsonl(tmp_path / "c" / "b.jsonl", [{"content": "b"}, {"content": "c"}])
    write_jsonl(tmp_path / "c" / "empty.jsonl", [])
    (tmp_path / "c" / "empty.jsonl.gz").write_bytes(b"")
    done = run(tmp_path / "c", tmp_path / "d", tokenizer_model, on_error="skip")
    assert done.documents == 1
    assert done.skips.report()[-1] == (
        f"nothing at all could be used of 2 input files: {tmp_path}/c/b.jsonl, {tmp_path}/c/empty.jsonl.gz"
    )
    (tmp_path / "c" / "b.jsonl").unlink()
    write_jsonl(tmp_path / "c" / "a.jsonl", [{"text": "a"}])
    with pytest.raises(CompeteError, match=r"empty\.jsonl\.gz:1: .*it is empty.*leave the rest of the file out"):
        run(tmp_path / "c", tmp_path / "e", tokenizer_model)


def test_nobody_reads_the_progress(
    write_corpus: WriteCorpus,
    tmp_path: Path,
    tokenizer_model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_corpus([{"text": f"line {index}"} for index in range(100)])
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        command = [*flags(path, tmp_path / "d", tokenizer_model), "--workers", "1", "--shard-size", "0.0005"]
        command += ["--tokenizer-engine", "reference"]
        with pytest.raises(BrokenPipeError):
            main([*command, "--log-interval", "1"])
        with contextlib.suppress(BrokenPipeError):
            closed.close()
    error = capsys.readouterr().err
    assert error.startswith("stopped, because nobody reads the progress") and "fix" not in error
    assert list((tmp_path / "d.work" / "parts").glob("*.journal"))
    main(command)
    assert "going on from" in capsys.readouterr().out


def test_a_named_pipe_is_read(parts: list[dict[str, str]], tmp_path: Path, tokenizer_model: str) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", parts[:500])
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cp", str(path), str(tmp_path / "pipe")]):
        run(tmp_path / "pipe", tmp_path / "d", tokenizer_model, shard_bytes=20_000, workers=2)
    assert dataset(tmp_path / "d") == reference(tokenised(parts[:500], "text", tokenizer_model, False), np.uint16)


@pytest.mark.parametrize("eos", ["<|eot|>", EOS])
def test_a_tokenizer_with_holes_in_its_ids(
    write_corpus: WriteCorpus,
    tmp_path: Path,
    eos: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = ["plain words", "with <|eot|> in it"]
    choice = hugging_face_folder(
        tmp_path / "t", with_a_hole(train_byte_level(texts, 300), "<|eot|>", 800), eos_token=eos
    )
    job = Preprocessing(
        (write_corpus([{"text": text} for text in texts]),), str(tmp_path / "d"), choice, append_eod=True
    )
    preprocess(replace(job, engine="reference"))
    ids = np.frombuffer(dataset(tmp_path / "d")[0], np.uint16)
    assert 800 in ids and json.loads((tmp_path / "d_text_document.json").read_text())["vocab_size"] == 801
    said = capsys.readouterr().err
    assert "has holes in its ids" in said and "the largest id is 800" in said and "--padded-vocab-size 896" in said


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_corpus_without_tokens(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, on_error: str) -> None:
    path = write_corpus([{"text": ""}, *(["{"] if on_error == "skip" else [])])
    with pytest.raises(CompeteError, match="no document with any text under 'text'"):
        run(path, tmp_path / "d", tokenizer_model, on_error=on_error)
    assert files_in(tmp_path) == ["corpus.jsonl"]


def test_a_key_without_tokens_costs_no_finished_shard(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str
) -> None:
    records: list[dict[str, Any]] = [{"note": [], "text": f"line {index}", "title": ""} for index in range(100)]
    path = write_corpus([*records, {"text": "no title"}])
    options: dict[str, Any] = {"shard_bytes": 1000, "on_error": "skip"}
    with pytest.raises(CompeteError, match=r"under 'note, title' in .*--json-keys text goes on from .*d\.work"):
        run(path, tmp_path / "d", tokenizer_model, json_keys=("note", "text", "title"), **options)
    done = run(path, tmp_path / "d", tokenizer_model, json_keys=("text",), **options)
    shards = -(-os.path.getsize(path) // 1000)
    assert done.continued == shards - 1  # the last one left out a document that lacks a title
    expected = [*records, {"text": "no title"}]
    assert dataset(tmp_path / "d") == reference(tokenised(expected, "text", tokenizer_model, False), np.uint16)
    assert not (tmp_path / "d.work").exists()


def test_a_key_with_tokens_cannot_be_left_out_of_an_unfinished_run(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str
) -> None:
    path = write_corpus([*({"text": f"line {index}", "title": "t"} for index in range(100)), "{"])
    with pytest.raises(CompeteError, match="not JSON"):
        run(path, tmp_path / "d", tokenizer_model, json_keys=("text", "title"), shard_bytes=1000)
    with pytest.raises(CompeteError, match=r"--json-keys changed \(text title then, text now\)"):
        run(path, tmp_path / "d", tokenizer_model, shard_bytes=1000)
    assert list((tmp_path / "d.work" / "parts").glob("*.journal"))


@pytest.mark.parametrize("content", [None, b"[]", b"{}", b'{"engine": {}, "identity": []}'])
def test_finished_shards_outlive_a_lost_description(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str, content: bytes | None
) -> None:
    path = write_corpus([*({"text": f"line {index}"} for index in range(100)), "{"])
    with pytest.raises(CompeteError, match="not JSON"):
        run(path, tmp_path / "d", tokenizer_model, shard_bytes=1000)
    (tmp_path / "d.work" / "job.json").unlink()
    if content is not None:
        (tmp_path / "d.work" / "job.json").write_bytes(content)
    with pytest.raises(CompeteError, match=r"job\.json is (gone|damaged): .*--restart"):
        run(path, tmp_path / "d", tokenizer_model, shard_bytes=1000)
    assert list((tmp_path / "d.work" / "parts").glob("*.journal"))
    run(path, tmp_path / "d", tokenizer_model, shard_bytes=1000, restart=True, on_error="skip")


def test_a_folder_of_somebody_else_is_left_alone(
    write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str
) -> None:
    (tmp_path / "d.work" / "parts").mkdir(parents=True)
    (tmp_path / "d.work" / "thesis.tex").write_text("years")
    for restart in (False, True):
        with pytest.raises(CompeteError, match=r"d\.work .* holds thesis\.tex, which is not of this tool"):
            run(write_corpus(DOCUMENTS), tmp_path / "d", tokenizer_model, restart=restart)
    assert sorted(path.name for path in (tmp_path / "d.work").iterdir()) == ["parts", "thesis.tex"]


def test_place_that_cannot_be_written_to(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str) -> None:
    path = write_corpus(DOCUMENTS)
    with pytest.raises(CompeteError, match=r"corpus\.jsonl"):
        run(path, Path(path) / "below_a_file", tokenizer_model)
