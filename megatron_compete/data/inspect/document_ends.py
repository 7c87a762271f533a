"""Marks of the end of a document, where they are and where they should not be: as ids, and spelled out in text.

A mark within a document makes two of it for a model (`--reset-position-ids`, generation), and one that is spelled out in
ordinary tokens teaches the model to write it. Corpora that were joined or exported by other tools have both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_compete.data.index_file import CHUNK, IndexFile

LITERALS = ("<|endoftext|>", "</s>", "<|end_of_text|>")
"""What common tokenizers call their end of document; a corpus may hold another's than its own."""

SAMPLED_DOCUMENTS = 2000
"""Documents that are decoded to look for marks in their text: evenly spaced ones, the first and the last among them."""

SAMPLED_TOKENS = 8192
"""Tokens of each that are decoded: half of them at its beginning, half at its end."""


@dataclass(frozen=True)
class Ends:
    """How the documents with tokens end."""

    eod: int | None
    """The id that was counted: as given, or the last of the first document with tokens; None where there is none."""

    ended: int
    """Documents whose last token it is."""

    unended: int
    """The others."""

    doubled: int
    """Documents whose last two tokens it is."""

    first_unended: tuple[int, int] | None
    """Number and last token of the first document with another."""


def count_ends(index: IndexFile, ids: np.ndarray, eod: int | None) -> Ends:
    """Look at the last two tokens of every document.

    Args:
        eod: end-of-document id; None takes the last token of the first document with tokens.
    """
    ended = unended = doubled = begin = 0
    first = None
    for start in range(0, index.documents, CHUNK):
        lengths = index.document_tokens(start, min(start + CHUNK, index.documents))
        filled = np.flatnonzero(lengths)
        places = begin + np.cumsum(lengths)[filled] - 1
        begin += int(lengths.sum())
        last = ids[places]
        if eod is None and last.size:
            eod = int(last[0])
        right = last == eod
        if first is None and not right.all():
            at = int(np.argmin(right))
            first = start + int(filled[at]), int(last[at])
        ended, unended = ended + int(right.sum()), unended + int((~right).sum())
        doubled += int((ids[places[right & (lengths[filled] > 1)] - 1] == eod).sum())
    return Ends(eod, ended, unended, doubled, first)


def misplaced_note(ends: Ends, occurrences: int) -> str | None:
    """What is worth knowing about end-of-document ids that are not the last of a document.

    Args:
        occurrences: of the id in the whole dataset.
    """
    within = occurrences - ends.ended
    if not within:
        return None
    return (
        f"{within} end-of-document tokens {ends.eod} are followed by more of their document; {ends.doubled} documents end "
        "with two: their text holds the mark, or had one when --append-eod added its own"
    )


def literal_notes(index: IndexFile, ids: np.ndarray, tokenizer: Any) -> list[str]:
    """Marks that are spelled out in text, a note each; looks at a bounded sample of documents.

    Args:
        tokenizer: Megatron's (`TokenizerChoice.build`).
    """
    eod = getattr(tokenizer, "eod", None)
    found: dict[str, list[int]] = {}
    looked_at = 0
    for document, some in _sample(index, ids):
        text = tokenizer.detokenize(some[some != eod].tolist())
        looked_at += 1
        for literal in LITERALS:
            if literal in text:
                found.setdefault(literal, []).append(document)
    return [
        f"{len(documents)} of {looked_at} documents looked at have {literal} in their text, spelled out in ordinary "
        f"tokens; the first is document {documents[0]}"
        for literal, documents in found.items()
    ]


def _sample(index: IndexFile, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    count = min(index.documents, SAMPLED_DOCUMENTS)
    for document in np.unique(np.linspace(0, index.documents - 1, count).astype(np.int64)).tolist():
        offset, size = index.document_bytes(document)
        some = ids[offset // index.item_bytes : (offset + size) // index.item_bytes]
        if some.size > SAMPLED_TOKENS:
            some = np.concatenate((some[: SAMPLED_TOKENS // 2], some[-SAMPLED_TOKENS // 2 :]))
        yield document, some
