"""The text of an audit: sequences of token ids, each of one domain.

S sequences, L tokens of a sequence, D domains.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.bad_documents import BadDocument, SkipLog, place_of
from megatron_compete.data.dataset import open_dataset, without_suffix
from megatron_compete.data.inputs import find_sources
from megatron_compete.data.inputs.documents import open_reader, read_all
from megatron_compete.data.inputs.texts import texts_of

MOST_DOMAINS = 64
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Text:
    """What the model is run on."""

    ids_SL: Tensor
    """[S, L + 1]: L tokens that are read, each of whose next one is predicted."""
    domain_S: Tensor
    """Number of each sequence's domain."""
    domains: list[str]

    @property
    def length(self) -> int:
        """L."""
        return self.ids_SL.shape[1] - 1

    @property
    def digest(self) -> str:
        """SHA-256 of ids and domains."""
        return hashlib.sha256(self.ids_SL.numpy().tobytes() + repr((self.domain_S.tolist(), self.domains)).encode()).hexdigest()  # fmt: skip


@dataclass(frozen=True)
class TextOptions:
    """Which text, and how much of it."""

    files: tuple[str, ...]
    """Text in any form that `preprocess` reads, or prefixes of Megatron datasets."""
    tokens: int
    """At most, over all files; each file has an equal part."""
    length: int
    """L."""
    key: str = "text"
    domain_key: str | None = None
    """JSON key or column whose value is a document's domain; None: a file is a domain."""


def read_text(options: TextOptions, encode: Encode | None, end: int | None) -> Text:
    """The beginning of each file in sequences: documents one after the other with `end` between them, as in pretraining.

    Sequences of all domains take turns, so that any first part of them holds all domains alike.

    Args:
        encode: token ids of a text; None where there is no tokenizer.
    Raises:
        CompeteError: a file that cannot be read, too little text, or too many domains.
    """
    quota = max(1, options.tokens // len(options.files) // options.length) * options.length
    pieces: dict[str, list[list[int]]] = {}
    for file in options.files:
        before = sum(map(len, pieces.values()))
        for domain, ids in _sequences(_documents(file, options, encode, end), options.length, quota):
            pieces.setdefault(domain, []).append(ids)
            if len(pieces) > MOST_DOMAINS:
                raise CompeteError(
                    f"--domain-key {options.domain_key}: more than {MOST_DOMAINS} domains: name a key with fewer values"
                )
        if sum(map(len, pieces.values())) == before:
            raise CompeteError(
                f"--text {file} is shorter than one sequence of {options.length + 1} tokens: give more text, or a smaller "
                "--seq-length"
            )
    domains = list(pieces)
    turns = sorted(
        (turn, domains.index(domain), ids) for domain, many in pieces.items() for turn, ids in enumerate(many)
    )
    return Text(torch.tensor([ids for _, _, ids in turns]), torch.tensor([domain for _, domain, _ in turns]), domains)


def _sequences(documents: Iterable[tuple[str, list[int]]], length: int, quota: int) -> Iterator[tuple[str, list[int]]]:
    """Sequences of length + 1 tokens; the last token of one is the first of the next."""
    streams: dict[str, list[int]] = {}
    for domain, ids in documents:
        stream = streams.setdefault(domain, [])
        stream += ids
        while len(stream) > length:
            yield domain, stream[: length + 1]
            quota -= length
            if quota <= 0:
                return
            del stream[:length]


def _documents(
    file: str, options: TextOptions, encode: Encode | None, end: int | None
) -> Iterator[tuple[str, list[int]]]:
    """Domain and token ids of each document."""
    if os.path.isfile(without_suffix(file) + ".idx"):
        yield from _of_dataset(file)
    elif encode is None:
        raise CompeteError(
            f"--text {file}: the model comes without a tokenizer: name one with --tokenizer, or give a dataset's prefix"
        )
    else:
        yield from _of_text(file, options, encode, [] if end is None else [end])


def _of_dataset(prefix: str) -> Iterator[tuple[str, list[int]]]:
    dataset = open_dataset(prefix)
    ends, ids, start = np.cumsum(dataset.index.lengths, dtype=np.int64), dataset.ids(), 0
    for last in dataset.index.bounds[1:]:
        stop = int(ends[last - 1]) if last else 0
        yield Path(dataset.prefix).name, ids[start:stop].tolist()
        start = stop


def _of_text(file: str, options: TextOptions, encode: Encode, end: list[int]) -> Iterator[tuple[str, list[int]]]:
    keys = [options.key] + ([options.domain_key] if options.domain_key else [])
    skips = SkipLog()
    for source in find_sources([file]):
        if options.domain_key and source.format == "text":
            raise CompeteError(f"--domain-key {options.domain_key}: {source.name} is plain text, which has no keys")
        reader = open_reader(source, keys)
        for raw in read_all(reader, skips):
            try:
                found = texts_of(source, raw, keys)
            except BadDocument as bad:
                skips.add(place_of(source.name, raw.number, source.unit), bad)
                continue
            text, domain = found[options.key], found.get(options.domain_key or "", Path(source.name).name)
            yield str(domain), encode(text if isinstance(text, str) else "".join(text)) + end
        reader.close()
