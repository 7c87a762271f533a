"""Finding and comparing finished datasets."""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.blend import make_blend
from megatron_compete.data.dataset import (
    check_same_kind,
    find_prefixes,
    open_dataset,
    same_tokenizer,
    tokenizer_of,
)
from megatron_compete.data.inspect.checks import Vocabulary, inspect
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.merge import merge_datasets
from megatron_compete.data.split import Part, split_dataset
from megatron_compete.data.tokenizer_match import check_tokenizer_matches
from tests.data.conftest import files_in
from tests.data.datasets import random_documents, write_dataset, write_manifest


def test_prefixes_from_folders_files_and_patterns(tmp_path: Path) -> None:
    for name in ("b_text_document", "a_text_document", "other"):
        write_dataset(tmp_path / name, [[[1]]])
    (tmp_path / "note.txt").write_text("")
    names = ["a_text_document", "b_text_document", "other"]
    assert find_prefixes([str(tmp_path)]) == [str(tmp_path / name) for name in names]
    for pattern in ("*_text_document", "*_document.bin"):
        assert find_prefixes([str(tmp_path / pattern)]) == [str(tmp_path / name) for name in names[:2]]
    named = [str(tmp_path / "other.idx"), str(tmp_path / "a_text_document")]
    assert find_prefixes(named) == [str(tmp_path / "other"), str(tmp_path / "a_text_document")]


def test_what_cannot_be_found(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", [[[1]]])
    (tmp_path / "empty").mkdir()
    for inputs, words in (
        ([str(tmp_path / "none")], "no dataset has this prefix"),
        ([str(tmp_path / "empty")], "no .bin and .idx files"),
        ([prefix, prefix + ".bin"], "names .*a twice"),
    ):
        with pytest.raises(CompeteError, match=words):
            find_prefixes(inputs)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", random_documents(5))
    with open(prefix + ".bin", "ab") as stream:
        stream.write(b"xx")
    with pytest.raises(CompeteError, match=r"a\.bin has \d+ bytes where .*a\.idx expects"):
        open_dataset(prefix)
    Path(prefix + ".idx").write_bytes(b"MMIDIDX")
    with pytest.raises(CompeteError, match=r"a\.idx is damaged: .*preprocess the corpus again"):
        open_dataset(prefix)
    Path(prefix + ".idx").unlink()
    with pytest.raises(CompeteError, match=r"a\.idx is missing"):
        open_dataset(prefix)


@pytest.mark.parametrize(
    ("bounds", "pointers", "words"),
    [
        (range(21), None, "table of documents ends at sequence 20 of 40"),  # as an old merge of Megatron-LM left them
        ([0], None, "table of documents ends at sequence 0 of 40"),
        ([*range(41), 45], None, "table of documents ends at sequence 45 of 40"),
        ([0, 5, 3, *range(6, 41)], None, "table of documents has document 1 end at sequence 3"),
        (range(3, 41), None, "table of documents begins at sequence 3"),
        ([0, 2**63 - 1, -(2**63), -1, 40], None, "table of documents has document 1 end at"),
        (None, [(39 - number) * 10 for number in range(40)], "table of pointers has sequence 0 begin at byte 390"),
    ],
)
def test_tables_that_do_not_fit_are_refused_by_every_tool(
    bounds: Sequence[int] | None, pointers: Sequence[int] | None, words: str, tmp_path: Path
) -> None:
    whole = write_dataset(tmp_path / "whole", [[[1, 2, 3, number, 7]] for number in range(40)])
    raw = Path(whole + ".idx").read_bytes()
    lengths, rest = raw[34 : 34 + 4 * 40], raw[34 + 4 * 40 : 34 + 12 * 40]
    documents = list(range(41)) if bounds is None else list(bounds)
    prefix = str(tmp_path / "damaged")
    Path(prefix + ".bin").write_bytes(Path(whole + ".bin").read_bytes())
    Path(prefix + ".idx").write_bytes(
        raw[:26]
        + struct.pack("<Q", len(documents))
        + lengths
        + (rest if pointers is None else struct.pack("<40q", *pointers))
        + struct.pack(f"<{len(documents)}q", *documents)
    )
    before = files_in(tmp_path)
    for tool in (
        lambda: merge_datasets([prefix, whole], str(tmp_path / "m")),
        lambda: split_dataset(prefix, str(tmp_path / "s"), [Part("a", "0.5"), Part("b", "0.5")]),
        lambda: make_blend([prefix, whole]),
        lambda: check_tokenizer_matches(prefix, TokenizerChoice("NullTokenizer"), 1000),
    ):
        with pytest.raises(CompeteError, match=f"damaged.idx is damaged: .*{words}"):
            tool()
    assert words in inspect(prefix, Vocabulary(None, None)).damage[0]
    assert files_in(tmp_path) == before


def test_tokenizers_are_compared_by_library_content_and_options(tmp_path: Path) -> None:
    prefixes = [write_dataset(tmp_path / name, [[[1]]]) for name in "ab"]
    first = write_manifest(prefixes[0])
    for changes, same in (
        ({"tokenizer_type": "Llama2Tokenizer", "tokenizer_model": "elsewhere/t.model"}, True),
        ({"tokenizer_sha256": "cd" * 32}, False),
        ({"tokenizer_type": "HuggingFaceTokenizer"}, False),
        ({"tokenizer_options": {"tokenizer_sentencepiece_legacy": True}}, False),
    ):
        other = write_manifest(prefixes[1], **changes)  # type: ignore[arg-type]
        assert same_tokenizer(first, other) is same
        datasets = [open_dataset(prefix) for prefix in prefixes]
        if same:
            check_same_kind(datasets, "merged")
        else:
            with pytest.raises(CompeteError, match=r"a and .*b cannot be merged: the first was made with"):
                check_same_kind(datasets, "merged")
    null = {"tokenizer_type": "NullTokenizer", "tokenizer_model": None, "tokenizer_sha256": None}
    one, two = (write_manifest(prefixes[0], **null, vocab_size=size) for size in (100, 200))  # type: ignore[arg-type]
    assert same_tokenizer(one, one) and not same_tokenizer(one, two)


def test_the_tokenizer_of_a_manifest(tmp_path: Path) -> None:
    prefix = write_dataset(tmp_path / "a", [[[1]]])
    choice = TokenizerChoice("TikTokenizer", "r.json", 1000, special_tokens=("<a>", "<b>"), tiktoken_pattern="v1")
    manifest = write_manifest(
        prefix, tokenizer_type="TikTokenizer", tokenizer_model="r.json", tokenizer_options=choice.options
    )
    assert tokenizer_of(manifest) == choice
