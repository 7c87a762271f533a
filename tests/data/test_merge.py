"""Merging is what Megatron's add_index does, with manifests."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data import index_file
from megatron_compete.data.blend import make_blend
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.merge import main, merge_datasets
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from megatron_compete.data.tokenizer_match import check_tokenizer_matches
from tests.data.conftest import VOCAB_SIZE, files_in
from tests.data.datasets import manifest_of, random_documents, read_documents, write_dataset, write_manifest


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_byte_for_byte_megatrons(dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    monkeypatch.setattr(index_file, "CHUNK", 4)
    (tmp_path / "parts").mkdir()
    parts = [random_documents(count, seed=count) for count in (11, 1, 20)] + [[[], [[5]]]]
    prefixes = [write_dataset(tmp_path / "parts" / f"{index}", part, dtype) for index, part in enumerate(parts)]
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for prefix in prefixes:
        builder.add_index(prefix)
    builder.finalize(str(tmp_path / "theirs.idx"))
    merged = merge_datasets([str(tmp_path / "parts")], str(tmp_path / "ours"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()
    assert read_documents(merged.prefix) == [document for part in parts for document in part]
    assert (merged.documents, merged.has_manifest) == (34, False)


def test_manifests_are_merged(tmp_path: Path) -> None:
    prefixes = [write_dataset(tmp_path / name, random_documents(9, seed=ord(name))) for name in "ab"]
    for prefix, engine in zip(prefixes, ("kitoken", "reference")):
        write_manifest(prefix, skipped={"not_json": 2}, empty_documents=1, engine={"name": engine}, job="x")
    merge_datasets(prefixes, str(tmp_path / "m"))
    one, two, both = (manifest_of(str(tmp_path / name)) for name in "abm")
    for count in ("documents", "sequences", "tokens", "empty_documents"):
        assert both[count] == one[count] + two[count] > 0
    assert both["inputs"] == one["inputs"] + two["inputs"] and both["skipped"] == {"not_json": 4}
    assert both["engine"] == {"merged": [{"name": "kitoken"}, {"name": "reference"}]} and both["job"] is None
    assert both["tokenizer_sha256"] == one["tokenizer_sha256"]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    a, b = (write_dataset(tmp_path / name, random_documents(5)) for name in "ab")
    wide = write_dataset(tmp_path / "wide", random_documents(5), np.int32)
    write_manifest(a)
    before = files_in(tmp_path)
    out = str(tmp_path / "out")
    for inputs, changes, words in (
        ([a, wide], None, "a holds ids as uint16 and .*wide as int32"),
        ([a, b], None, "b has no manifest .*--ignore-manifests"),
        ([a, b], {"tokenizer_sha256": "0" * 64}, "cannot be merged: the first was made with"),
        ([a, b], {"append_eod": False}, "one has end-of-document tokens"),
        ([a, out], None, "out"),
    ):
        if changes is not None:
            write_manifest(b, **changes)  # type: ignore[arg-type]
        with pytest.raises(CompeteError, match=words):
            merge_datasets(inputs, out)
        Path(b + ".json").unlink(missing_ok=True)
    with pytest.raises(CompeteError, match="is one of the datasets to merge"):
        merge_datasets([a, b], b)
    assert files_in(tmp_path) == before


def test_an_older_manifest_does_not_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_dataset(tmp_path / name, random_documents(5)) for name in "ab")
    write_manifest(a)
    (tmp_path / "out.json").write_text("{}")
    main(["--input", a, b, "--output-prefix", str(tmp_path / "out"), "--ignore-manifests"])
    assert files_in(tmp_path) == ["a.bin", "a.idx", "a.json", "b.bin", "b.idx", "out.bin", "out.idx"]
    assert "out: 10 documents" in capsys.readouterr().out


def test_training_knows_the_tokenizer_of_a_merged_dataset(
    stdlib_corpus: StdlibCorpus, tokenizer_model: str, tmp_path: Path
) -> None:
    from megatron_compete.data.preprocess import main as preprocess

    for name, text in (("a", stdlib_corpus.train_path), ("b", stdlib_corpus.heldout_path)):
        preprocess(
            ["--input", text, "--output-prefix", str(tmp_path / name), "--append-eod", "--workers", "1"]
            + ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", tokenizer_model]
            + ["--tokenizer-engine", "reference"]
        )
    merged = merge_datasets([str(tmp_path / "*_text_document")], str(tmp_path / "merged")).prefix
    assert manifest_of(merged)["documents"] == stdlib_corpus.train_documents + stdlib_corpus.heldout_documents
    choice = TokenizerChoice("SentencePieceTokenizer", tokenizer_model)
    check_tokenizer_matches(merged, choice, VOCAB_SIZE)
    with pytest.raises(CompeteError, match="tokenizer_sentencepiece_legacy its default, and training has True"):
        check_tokenizer_matches(merged, replace(choice, tokenizer_sentencepiece_legacy=True), VOCAB_SIZE)


def test_manifests_of_other_datasets(tmp_path: Path) -> None:
    a, b = (write_dataset(tmp_path / name, random_documents(5)) for name in "ab")
    write_manifest(a)
    write_manifest(b, documents=4)
    with pytest.raises(CompeteError, match=r"b\.json is of another dataset than .*\(4 documents against 5\)"):
        merge_datasets([a, b], str(tmp_path / "m"))
    assert merge_datasets([a, b], str(tmp_path / "m"), ignore_manifests=True).documents == 10


def test_no_descriptor_is_held(tmp_path: Path) -> None:
    documents = random_documents(3)
    prefixes = [write_dataset(tmp_path / f"{number:02d}", documents) for number in range(40)]
    own = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (own + 25, limits[1]))
    try:
        merged = merge_datasets(prefixes, str(tmp_path / "m"))
        blend = make_blend(prefixes)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert read_documents(merged.prefix) == documents * 40
    assert len(blend.sources) == 40
