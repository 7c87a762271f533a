import json
from pathlib import Path

import pytest
import torch

from megatron_compete.audit.text import TextOptions, read_text
from megatron_compete.common.errors import CompeteError
from tests.audit.models import dataset

END = 99


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


def write(path: Path, *records: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_documents_follow_one_another_in_sequences(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"text": "\1\2\3"}, {"text": "\4\5\6\7\10"})
    found = read_text(TextOptions((file,), 100, 4), encode, END)
    assert found.ids_SL.tolist() == [[1, 2, 3, END, 4], [4, 5, 6, 7, 8]]  # what is left over is no sequence
    assert found.domains == ["a.jsonl"] and found.length == 4


def test_files_are_domains_with_equal_parts_in_turns(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", {"text": name * 50}) for name in "ab"]
    found = read_text(TextOptions(tuple(files), 24, 4), encode, None)
    assert found.domains == ["a.jsonl", "b.jsonl"]
    assert found.domain_S.tolist() == [0, 1, 0, 1, 0, 1]
    assert all((ids == ord("ab"[domain])).all() for ids, domain in zip(found.ids_SL, found.domain_S.tolist()))


def test_a_key_names_the_domain(tmp_path: Path) -> None:
    records = [{"text": "xy" * 10, "source": source} for source in ("wiki", "code", "wiki")]
    found = read_text(TextOptions((write(tmp_path / "a.jsonl", *records),), 1000, 5, domain_key="source"), encode, None)
    assert found.domains == ["wiki", "code"]
    assert torch.bincount(found.domain_S).tolist() == [7, 3]


def test_a_dataset_needs_no_tokenizer(tmp_path: Path) -> None:
    prefix = dataset(tmp_path / "corpus_text_document", documents=3, tokens=10)
    for named in (prefix, f"{prefix}.bin", f"{prefix}.idx"):
        found = read_text(TextOptions((named,), 1000, 7), None, None)
        assert found.ids_SL.shape == (4, 8) and found.domains == ["corpus_text_document"]
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    upstream = IndexedDataset(prefix)  # held: its documents are views of a map that ends with it
    ids = torch.cat([torch.tensor(upstream[number]) for number in range(3)])
    assert torch.equal(found.ids_SL, ids.unfold(0, 8, 7))


def test_digest_tells_texts_apart(tmp_path: Path) -> None:
    one, other = (write(tmp_path / f"{name}.jsonl", {"text": name * 20}) for name in "ab")
    digests = {read_text(TextOptions(files, 100, 4), encode, None).digest for files in ((one,), (other,), (one, other))}
    assert len(digests) == 3
    assert read_text(TextOptions((one,), 100, 4), encode, None).digest in digests


@pytest.mark.parametrize(
    ("make", "options", "error"),
    [
        (
            "short",
            {},
            r"--text .*short.* is shorter than one sequence of 5 tokens: give more text, or a smaller --seq-length",
        ),
        ("txt", {"domain_key": "source"}, r"--domain-key source: .*\.txt is plain text, which has no keys"),
        ("many", {"domain_key": "source"}, r"--domain-key source: more than 64 domains"),
        ("wrong key", {"key": "body"}, r"no key 'body'"),
        ("missing", {}, r"missing"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, make: str, options: dict[str, str], error: str) -> None:
    path = tmp_path / f"{make}.jsonl"
    if make == "txt":
        path = tmp_path / "plain.txt"
        path.write_text("some words")
    elif make != "missing":
        write(
            path,
            *(
                {"text": "ab" if make == "short" else "abcdefg", "source": str(n)}
                for n in range(1 if make == "short" else 70)
            ),
        )
    with pytest.raises(CompeteError, match=error):
        read_text(TextOptions((str(path),), 10000, 4, **options), encode, None)


def test_without_a_tokenizer_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CompeteError, match=r"without a tokenizer: name one with --tokenizer, or give a dataset's prefix"
    ):
        read_text(TextOptions((write(tmp_path / "a.jsonl", {"text": "abc"}),), 10, 2), None, None)
