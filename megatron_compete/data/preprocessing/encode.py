"""Texts of documents to token ids, a batch at a time, as Megatron-LM's tools/preprocess_data.py does it one by one.

Each sentence is tokenised by itself and sentences without tokens are dropped; the end-of-document id, if any, belongs to
the last sentence; a document without tokens gets none and stays in the dataset as an empty one.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.engines import BatchEncoder, EngineDiffers
from megatron_compete.data.inputs.texts import Text

Ids = Sequence[int] | np.ndarray
DocumentTexts = dict[str, Text]


@dataclass
class EncodedKey:
    """One key's share of a batch."""

    ids: np.ndarray
    """Of all documents in a row, end-of-document ids included."""

    lengths: list[int]
    """Tokens of each sentence that has some."""

    sentences: list[int]
    """Such sentences in each document."""


@dataclass
class EncodedBatch:
    """A batch of documents as they go into the dataset, and those that do not."""

    keys: dict[str, EncodedKey]
    faults: list[tuple[int, BadDocument]] = field(default_factory=list)
    """Index in the batch, and what is wrong."""

    empty: int = 0
    """Documents without tokens among those that go in."""


class _OutOfRange(Exception):
    """An id that the vocabulary does not have."""

    def __init__(self, key: str, found: int) -> None:
        super().__init__(key, found)
        self.key = key
        self.found = found


@dataclass(frozen=True)
class DocumentEncoder:
    """Turns documents into ids."""

    engine: BatchEncoder
    keys: tuple[str, ...]
    vocab_size: int
    eod: int | None
    """Appended to every document that has tokens."""

    dtype: type[Any]
    """What the dataset stores ids as."""

    reject_empty: bool = False
    """Whether a document without tokens is a bad one."""

    def encode(self, documents: Sequence[DocumentTexts]) -> EncodedBatch:
        """Ids of a batch; documents that the tokenizer cannot take come back as faults.

        Raises:
            EngineDiffers: the engine was caught giving other ids than the reference.
        """
        try:
            return self._encode(documents)
        except (_OutOfRange, BadDocument):
            return self._encode_one_by_one(documents)

    def _encode_one_by_one(self, documents: Sequence[DocumentTexts]) -> EncodedBatch:
        """Find the documents that cannot be taken, and encode the others."""
        faults, good = [], []
        for index, document in enumerate(documents):
            try:
                self._encode([document])
                good.append(document)
            except _OutOfRange as error:
                reason = f"{error.key!r} becomes token id {error.found}, outside the vocabulary of {self.vocab_size}"
                faults.append((index, BadDocument("not_tokenizable", reason)))
            except BadDocument as bad:
                faults.append((index, bad))
        batch = self._encode(good)
        batch.faults = faults
        return batch

    def _encode(self, documents: Sequence[DocumentTexts]) -> EncodedBatch:
        ids_by_key = {key: self._tokenize(key, documents) for key in self.keys}
        empty = [not any(any(map(len, ids[index])) for ids in ids_by_key.values()) for index in range(len(documents))]
        if self.reject_empty and any(empty):
            if len(documents) > 1:
                raise BadDocument("empty", "")
            raise BadDocument("empty", f"a document without tokens under {', '.join(map(repr, self.keys))}")
        return EncodedBatch({key: self._join(key, ids) for key, ids in ids_by_key.items()}, empty=sum(empty))

    def _tokenize(self, key: str, documents: Sequence[DocumentTexts]) -> list[list[Ids]]:
        """Ids of each sentence of each document."""
        texts = [document[key] for document in documents]
        try:
            if all(isinstance(text, str) for text in texts):
                return [[ids] for ids in self.engine.encode_batch(texts)]  # type: ignore[arg-type]
            sentences = [text if isinstance(text, list) else [text] for text in texts]
            ids = iter(self.engine.encode_batch([sentence for document in sentences for sentence in document]))
            return [[next(ids) for _ in document] for document in sentences]
        except EngineDiffers:
            raise
        except Exception as error:  # every library raises its own kind
            reason = f"the tokenizer refuses {key!r}: {error or type(error).__name__}"
            raise BadDocument("not_tokenizable", reason) from None

    def _join(self, key: str, documents: Sequence[Sequence[Ids]]) -> EncodedKey:
        joined, lengths, sentences = array("i"), [], []
        for document in documents:
            count = 0
            for ids in document:
                if len(ids):
                    _extend(joined, ids, key)
                    lengths.append(len(ids))
                    count += 1
            if count and self.eod is not None:
                joined.append(self.eod)
                lengths[-1] += 1
            sentences.append(count)
        ids = np.frombuffer(joined, dtype=np.int32)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise _OutOfRange(key, int(ids.min()) if ids.min() < 0 else int(ids.max()))
        return EncodedKey(ids.astype(self.dtype), lengths, sentences)


def _extend(joined: array, ids: Ids, key: str) -> None:
    """Append `ids`; an array is much quicker to fill from a list than numpy's are."""
    try:
        if isinstance(ids, np.ndarray):
            joined.frombytes(ids.astype(np.int32).tobytes())
        else:
            joined.fromlist(ids if isinstance(ids, list) else list(ids))
    except OverflowError:
        raise _OutOfRange(key, max(ids, key=abs)) from None
