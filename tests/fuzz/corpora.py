"""Corpora of which every document is known again: its text is its ids, and those are its number."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from megatron_compete.data.inputs import InputOptions
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocess import Preprocessing, preprocess
from tests.fuzz.damage import Read

VOCAB_SIZE = 5000
IDS = 4
"""Tokens of a document."""

Document = tuple[int, ...]


def document(number: int) -> Document:
    """Ids of a document; no two have one in common."""
    return tuple(range(number * IDS, (number + 1) * IDS))


def text(number: int) -> str:
    """What NullTokenizer reads `document(number)` from."""
    return " ".join(map(str, document(number)))


def lines(numbers: Sequence[int]) -> bytes:
    """JSON Lines of documents."""
    return b"".join(json.dumps({"id": f"é{number}", "text": text(number)}).encode() + b"\n" for number in numbers)


def preprocessed(path: Path, reading: InputOptions | None = None) -> tuple[list[Document], int]:
    """Documents of the dataset made of a file with --on-error skip, and how many faults were counted.

    Raises:
        CompeteError: the file is refused.
    """
    prefix = path.parent / "dataset"
    done = preprocess(
        Preprocessing(
            (str(path),),
            str(prefix),
            TokenizerChoice("NullTokenizer", vocab_size=VOCAB_SIZE),
            on_error="skip",
            reading=reading or InputOptions(),
            engine="reference",
            shard_bytes=300,
            restart=True,
        )
    )
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(done.prefixes[0], mmap=False)
    ends = dataset.document_indices
    found = [
        tuple(int(token) for index in range(start, end) for token in np.atleast_1d(dataset[index]))
        for start, end in pairwise(ends)
    ]
    assert done.documents == len(found)
    return found, done.skips.total


def reader_of_whole_files(path: Path, good: Sequence[Sequence[int]]) -> Read:
    """A reader of files with checksums: without a fault, what comes out are whole files that went in."""
    whole: list[list[Document]] = [[document(number) for number in numbers] for numbers in good]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found, faults = preprocessed(path)
        if not faults:
            assert found and _is_joined(found, whole), f"{len(found)} documents and no fault: {found[:3]}"

    return read


def _is_joined(found: Sequence[Document], whole: Sequence[Sequence[Document]]) -> bool:
    rest = list(found)
    while rest:
        part = next((part for part in whole if part[0] == rest[0]), None)
        if part is None or rest[: len(part)] != list(part):
            return False
        rest = rest[len(part) :]
    return True
