"""Datasets that belong to a tokenizer, and those that do not."""

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocess import Preprocessing, preprocess
from megatron_compete.data.stdlib_corpus import StdlibCorpus
from megatron_compete.data.tokenizer import TokenizerTraining, train_tokenizer
from megatron_compete.data.tokenizer_match import SAMPLED_SEQUENCES, check_tokenizer_matches
from tests.data.conftest import VOCAB_SIZE, WriteCorpus
from tests.data.datasets import write_dataset, write_manifest


@pytest.fixture
def prefix(write_corpus: WriteCorpus, tmp_path: Path, tokenizer_model: str) -> str:
    path = write_corpus([{"text": "some text"}, {"text": ""}, {"text": "more of it"}])
    choice = TokenizerChoice("SentencePieceTokenizer", tokenizer_model)
    return preprocess(Preprocessing((path,), str(tmp_path / "d"), choice)).prefixes[0]


def check(prefix: str, model: str | None, kind: str = "SentencePieceTokenizer", vocab_size: int = VOCAB_SIZE) -> None:
    check_tokenizer_matches(prefix, TokenizerChoice(kind, model), vocab_size)


def test_the_right_tokenizer_under_any_name(prefix: str, tokenizer_model: str, tmp_path: Path) -> None:
    check(prefix, tokenizer_model)
    copy = tmp_path / "copy.model"
    shutil.copy(tokenizer_model, copy)
    check(prefix, str(copy), kind="Llama2Tokenizer", vocab_size=VOCAB_SIZE + 24)


def test_another_tokenizer(prefix: str, tokenizer_model: str, stdlib_corpus: StdlibCorpus, tmp_path: Path) -> None:
    training = TokenizerTraining((stdlib_corpus.heldout_path,), str(tmp_path / "other"), 500)
    other = train_tokenizer(training).model_path
    with pytest.raises(CompeteError) as caught:
        check(prefix, other)
    assert all(word in str(caught.value) for word in (tokenizer_model, other, prefix, "preprocess the corpus again"))
    with pytest.raises(CompeteError, match="another type"):
        check(prefix, tokenizer_model, kind="HuggingFaceTokenizer")
    with pytest.raises(CompeteError, match="no such file"):
        check(prefix, str(tmp_path / "none.model"))
    with pytest.raises(CompeteError, match=f"vocabulary of {VOCAB_SIZE}, but the model has 999"):
        check(prefix, tokenizer_model, vocab_size=999)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_file(prefix: str, tokenizer_model: str, suffix: str) -> None:
    Path(prefix + suffix).unlink()
    with pytest.raises(CompeteError, match=rf"{suffix} is missing; make it with megatron-compete preprocess") as caught:
        check(prefix, tokenizer_model)
    assert f"--output-prefix {prefix.removesuffix('_text_document')}" in str(caught.value)


def test_a_prefix_with_its_suffix(prefix: str, tokenizer_model: str) -> None:
    with pytest.raises(CompeteError, match="give the path without its suffix"):
        check(prefix + ".bin", tokenizer_model)


def test_files_that_are_not_whole(prefix: str, tokenizer_model: str) -> None:
    whole = Path(prefix + ".bin").read_bytes()
    Path(prefix + ".bin").write_bytes(whole[:-2])
    with pytest.raises(CompeteError, match="the copy is incomplete"):
        check(prefix, tokenizer_model)
    Path(prefix + ".bin").write_bytes(whole)
    index = Path(prefix + ".idx").read_bytes()
    forgets_documents = index[:26] + struct.pack("<Q", 1) + index[34 : -8 * 3]
    for broken in (b"", b"something else entirely", index[:40], forgets_documents):
        Path(prefix + ".idx").write_bytes(broken)
        with pytest.raises(CompeteError, match=r"\.idx is damaged: .*preprocess the corpus again"):
            check(prefix, tokenizer_model)


def test_a_manifest_of_another_dataset(prefix: str, tokenizer_model: str) -> None:
    write_as_megatron(prefix, [[1, 2], [3]])
    with pytest.raises(CompeteError, match=r"d_text_document\.json is of another dataset"):
        check(prefix, tokenizer_model)


def write_as_megatron(prefix: str, documents: list[list[int]]) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=np.uint16)
    for document in documents:
        builder.add_document(document, [len(document)] if document else [])
    builder.finalize(prefix + ".idx")


@pytest.mark.parametrize("place", [0, 3 * SAMPLED_SEQUENCES - 1])
def test_without_manifest_the_ids_are_sampled(tmp_path: Path, tokenizer_model: str, place: int) -> None:
    prefix = str(tmp_path / "theirs")
    documents = [[1, 2, VOCAB_SIZE - 1]] * (3 * SAMPLED_SEQUENCES)
    write_as_megatron(prefix, documents)
    check(prefix, tokenizer_model)
    documents[place] = [1, VOCAB_SIZE]
    write_as_megatron(prefix, documents)
    with pytest.raises(CompeteError, match=f"sequence {place} of .* token id {VOCAB_SIZE}, outside the {VOCAB_SIZE}"):
        check(prefix, tokenizer_model)


def test_files_of_a_vocabulary_and_merges_are_compared(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("vocab.json", "merges.txt", "other.txt")}
    for name, path in files.items():
        path.write_text(name)
    made = TokenizerChoice("GPT2BPETokenizer", None, None, str(files["vocab.json"]), str(files["merges.txt"]))
    prefix = write_dataset(tmp_path / "d", [[[1, 2]]])
    write_manifest(
        prefix, tokenizer_type=made.tokenizer_type, tokenizer_model=None, tokenizer_sha256=made.fingerprint()
    )
    check_tokenizer_matches(prefix, made, 1000)
    with pytest.raises(CompeteError, match=r"other\.txt has other content"):
        check_tokenizer_matches(prefix, replace(made, merge_file=str(files["other.txt"])), 1000)


def test_a_dataset_without_tokens(tmp_path: Path, tokenizer_model: str) -> None:
    prefix = str(tmp_path / "empty")
    write_as_megatron(prefix, [[], []])
    with pytest.raises(CompeteError, match="holds no tokens"):
        check(prefix, tokenizer_model)


def test_tokenizers_without_files_are_compared_by_name(write_corpus: WriteCorpus, tmp_path: Path) -> None:
    choice = TokenizerChoice("NullTokenizer", vocab_size=50)
    job = Preprocessing((write_corpus([{"text": "1 2"}]),), str(tmp_path / "null"), choice)
    prefix = preprocess(job).prefixes[0]
    check(prefix, None, kind="NullTokenizer", vocab_size=50)
    with pytest.raises(CompeteError, match="another type"):
        check(prefix, "some/hub-name", kind="HuggingFaceTokenizer", vocab_size=50)
