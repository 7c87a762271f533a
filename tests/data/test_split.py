"""Splitting by documents."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data import index_file, split
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.merge import merge_datasets
from megatron_compete.data.split import Part, main, part_sizes, split_dataset
from megatron_compete.data.tokenizer_match import check_tokenizer_matches
from tests.data.conftest import files_in
from tests.data.datasets import manifest_of, random_documents, read_documents, write_dataset, write_manifest

Document = list[list[int]]


def parts_of(*texts: str) -> list[Part]:
    return [Part.parse(text) for text in texts]


def is_subsequence(some: list[Document], of: list[Document]) -> bool:
    rest = iter(of)
    return all(document in rest for document in some)


@pytest.mark.parametrize("contiguous", [False, True])
def test_every_document_is_in_one_part_in_its_order(
    contiguous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "CHUNK", 16)
    monkeypatch.setattr(split, "CHUNK", 16)
    documents = random_documents(100)
    prefix = write_dataset(tmp_path / "d", documents)
    parts = parts_of("train=rest", "valid=0.1", "test=7")
    written, left_out = split_dataset(prefix, str(tmp_path / "s"), parts, seed=3, contiguous=contiguous)
    found = [read_documents(part.prefix) for part in written]
    assert [len(one) for one in found] == [part.documents for part in written] == [83, 10, 7]
    assert left_out == 0
    assert sorted(document for one in found for document in one) == sorted(documents)
    assert all(is_subsequence(one, documents) for one in found)
    assert (found[0] + found[1] + found[2] == documents) is contiguous
    assert [part.tokens for part in written] == [sum(len(s) for doc in one for s in doc) for one in found]


def test_contiguous_parts_merge_back_to_the_same_bytes(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "d", random_documents(50, seed=9))
    written, _ = split_dataset(prefix, str(tmp_path / "s"), parts_of("a=0.3", "b=0.3", "c=0.4"), contiguous=True)
    merge_datasets([part.prefix for part in written], str(tmp_path / "m"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"m.{suffix}").read_bytes() == (tmp_path / f"d.{suffix}").read_bytes()


def test_the_seed_decides(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "d", random_documents(60))
    raw = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        split_dataset(prefix, str(tmp_path / name), parts_of("a=0.5", "b=0.5"), seed)
        raw[name] = (tmp_path / f"{name}_a.bin").read_bytes()
    assert raw["one"] == raw["again"] != raw["other"]


def test_sizes() -> None:
    assert part_sizes(parts_of("a=0.5", "b=0.5"), 7) == [4, 3]
    assert part_sizes(parts_of("a=0.1", "b=0.2", "c=0.7"), 10) == [1, 2, 7]
    assert part_sizes(parts_of("a=0.5", "b=3"), 10) == [5, 3]
    assert part_sizes(parts_of("a=1.0"), 10) == [10]
    assert part_sizes(parts_of("a=0.29"), 100) == [29]
    for texts, words in (
        (("a=0.6", "b=0.6"), "do not fit 10 documents"),
        (("a=0.01", "b=rest"), "a would have 0"),
        (("a=11",), "do not fit"),
        (("a=10", "b=rest"), "b would have 0"),
        (("a=rest", "b=rest"), "only one part"),
        (("a=1", "a=2"), "name each part once"),
    ):
        with pytest.raises(CompeteError, match=words):
            part_sizes(parts_of(*texts), 10)


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=1.5", "a=-1", "a=x", "a=0.0", "a/b=1", "a=nan"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(CompeteError, match="NAME=SIZE"):
        Part.parse(text)


def test_manifests_of_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = write_dataset(tmp_path / "d", random_documents(100))
    write_manifest(prefix, tokenizer_type="NullTokenizer", tokenizer_model=None, tokenizer_sha256=None, job="x")
    main(["--input", prefix + ".idx", "--output-prefix", str(tmp_path / "s"), "--parts", "a=0.25", "b=0.25"])
    assert "50 documents are in no part" in capsys.readouterr().out
    for name in "ab":
        part = str(tmp_path / f"s_{name}")
        manifest = manifest_of(part)
        documents = read_documents(part)
        assert (manifest["documents"], manifest["job"]) == (25, None)
        assert manifest["empty_documents"] == sum(not document for document in documents) > 0
        check_tokenizer_matches(part, TokenizerChoice("NullTokenizer"), 1000)


def test_no_output_of_a_split_that_fails(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "d_a", [[[1, 2]], []])
    with pytest.raises(CompeteError, match="d_b would hold no tokens"):
        split_dataset(prefix, str(tmp_path / "d"), parts_of("x=1", "b=1"), contiguous=True)
    with pytest.raises(CompeteError, match="would replace the dataset"):
        split_dataset(prefix, str(tmp_path / "d"), parts_of("a=1"))
    assert files_in(tmp_path) == ["d_a.bin", "d_a.idx"]
