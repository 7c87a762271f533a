"""Does an engine differ from the reference? Asked on the corpus itself and on strings made to find differences.

A sample of ordinary text finds few of them: kitoken differed from a GPT-2-like Hugging Face tokenizer on 1 of 3439
Python files, where a line began with 'd (a contraction to the tokenizer's rules). So it is asked on both: documents of
the corpus, which show what matters, and odd strings, which show what will turn up sooner or later. That neither finds a
difference is no proof that there is none.
"""

import random
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_compete.data.engines.load import Encode, Ids

ODD_STRINGS = 4000
"""Mixtures among the odd strings."""

LONGEST_TEXT = 500_000
"""Characters of a document that the check looks at: a corpus may hold a document of gigabytes."""

_BATCH = 64
_CORPUS_CHARACTERS = 200
_STRANGE = (
    "\x00\t\n\r\x0b\x1c\x85\xa0\xad \u0301\u0308\u200b\u200d\u2028\u2029\u3000\ufeff\ufffd\uffff\U0010ffff"
    "\u2581'\u2019\u0661\xb2\xbd\ufb01\u01c5\u0130\xdf\u212b\uff21\u4e2d\u3042\ud55c\u0e01\u05d0\u0639\u0928\U0001f642\U0001f468"
)
_WRITTEN_OUT = (
    "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<0x0A>", "<|endoftext|>", "[CLS]", "[SEP]", "<SPECIAL_10>", "<extra_id_0>",
    "don't", "I'LL", "'s", "'ll", "'re", "0123456789", "3.14", "  ", "    ", "\n\n", "\r\n", "://", "a" * 40, " " * 40, "\u2581\u2581",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What came of encoding the same texts with an engine and the reference."""

    documents: int
    bytes: int
    """UTF-8 bytes of the documents."""
    strings: int
    """Odd strings besides them."""
    differing_documents: int
    differing_strings: int
    difference: str | None
    """The first difference in words; None when there is none."""
    speed: float
    """Of the engine on the documents, as a multiple of the reference's."""

    @property
    def identical(self) -> bool:
        """No text differed."""
        return self.difference is None


@dataclass(frozen=True)
class ReferenceIds:
    """What the reference makes of the texts: worked out once for all engines."""

    documents: list[str]
    strings: list[str]
    document_ids: list[Ids]
    string_ids: list[Ids]
    seconds: float
    """Processor time for the documents."""


def encode_reference(reference: Encode, sample: Sequence[str]) -> ReferenceIds:
    """Encode the sample and the odd strings; those that the reference refuses are left out, they have no ids."""
    strings, string_ids = _accepted(reference, list(odd_strings(sample)))
    start = time.process_time()
    documents, document_ids = _accepted(reference, [text[:LONGEST_TEXT] for text in sample])
    seconds = time.process_time() - start
    return ReferenceIds(documents, strings, document_ids, string_ids, max(seconds, 1e-9))


def _accepted(encode: Encode, texts: Sequence[str]) -> tuple[list[str], list[Ids]]:
    accepted: list[str] = []
    ids: list[Ids] = []
    for text in texts:
        try:
            ids.extend(encode([text]))
        except Exception:  # every library raises its own kind; preprocessing reports such a document when it meets it
            continue
        accepted.append(text)
    return accepted, ids


def compare(engine: Encode, expected: ReferenceIds) -> Comparison:
    """Encode everything with `engine` too."""
    # Strings first: what an engine does once, at its first texts, is not part of its speed.
    wrong_strings, odd = _differences(engine, expected.strings, expected.string_ids, "odd string")
    start = time.process_time()
    wrong_documents, first = _differences(engine, expected.documents, expected.document_ids, "document of the sample")
    seconds = max(time.process_time() - start, 1e-9)
    return Comparison(
        documents=len(expected.documents),
        bytes=sum(len(text.encode("utf-8")) for text in expected.documents),
        strings=len(expected.strings),
        differing_documents=wrong_documents,
        differing_strings=wrong_strings,
        difference=first or odd,
        speed=expected.seconds / seconds,
    )


def _differences(engine: Encode, texts: list[str], expected: list[Ids], what: str) -> tuple[int, str | None]:
    count, first = 0, None
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        for offset, (text, ids) in enumerate(zip(batch, encode_safely(engine, batch))):
            words = ids if isinstance(ids, str) else difference(ids, expected[start + offset])
            if words is not None:
                count += 1
                shown = text if len(text) <= 40 else text[:40] + "..."
                first = first or f"{what} {start + offset} ({shown!r}): {words}"
    return count, first


def encode_safely(engine: Encode, texts: list[str]) -> list[Ids | str]:
    """Ids of every text, or what the engine said when it failed on it (a panic in Rust is no `Exception`)."""
    try:
        return list(engine(texts))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if len(texts) == 1:
            return [f"it fails: {' '.join(str(error).split()) or type(error).__name__}"]
        return [result for text in texts for result in encode_safely(engine, [text])]


def difference(ids: Ids, expected: Ids) -> str | None:
    """The first token at which two encodings of one text part, in words; None when they are equal."""
    found, wanted = np.asarray(ids, dtype=np.int64), np.asarray(expected, dtype=np.int64)
    if np.array_equal(found, wanted):
        return None
    length = min(found.size, wanted.size)
    unequal = np.flatnonzero(found[:length] != wanted[:length])
    at = int(unequal[0]) if unequal.size else length
    token = [str(int(ids[at])) if at < ids.size else "no token" for ids in (found, wanted)]
    return f"token {at} is {token[0]} where the reference has {token[1]}"


def odd_strings(sample: Sequence[str], count: int = ODD_STRINGS, seed: int = 0) -> Iterator[str]:
    """Strings made to find differences; the same sample and seed give the same ones.

    Every strange character and written-out token by itself and after every other (the rules that cut a text into words
    look at neighbours), then mixtures of strange characters, of the sample's own (the rare as often as
    the common), of special tokens written out, and of pieces of the sample cut at any character.
    """
    draw = random.Random(seed)
    common = [character for character, _ in Counter("".join(sample)[:1_000_000]).most_common()]
    characters = sorted(set(_STRANGE) | set(common[:_CORPUS_CHARACTERS]) | set(common[-_CORPUS_CHARACTERS:]))
    yield from ("", *characters)
    alone = (*_STRANGE, *_WRITTEN_OUT)
    yield from (*alone, *(one + other for one in alone for other in alone))
    long_enough = [text for text in sample if len(text) > 1]
    for index in range(count):
        parts = [_part(draw, characters, long_enough) for _ in range(draw.randint(1, 24))]
        joined = "".join(parts)
        yield unicodedata.normalize("NFD", joined) if index % 16 == 0 else joined


def _part(draw: random.Random, characters: Sequence[str], sample: Sequence[str]) -> str:
    kind = draw.random()
    if kind < 0.45:
        return draw.choice(_STRANGE)
    if kind < 0.80:
        return draw.choice(characters)
    if kind < 0.90 or not sample:
        return draw.choice(_WRITTEN_OUT)
    text = draw.choice(sample)
    start = draw.randrange(len(text))
    return text[start : start + draw.randint(1, 12)]
