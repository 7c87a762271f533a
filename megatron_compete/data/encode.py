"""Lines of a corpus to token ids, in input order, in this process or in forked workers."""

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import batched
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from megatron_compete.data.corpus import BadLine, CorpusLine, Text, parse_line
from megatron_compete.errors import CompeteError

BATCH_LINES = 32
"""Lines that travel to a worker together."""

BATCHES_PER_WORKER = 4
"""Batches in flight for each worker: enough to keep it busy, few enough to bound memory."""


class Encoded(NamedTuple):
    """One key's document: its ids, and the length of each of its sentences that has tokens."""

    ids: np.ndarray
    lengths: list[int]


EncodedLine = dict[str, Encoded]
"""A line's documents by key."""


@dataclass(frozen=True)
class Encoder:
    """Turns a line into ids the way Megatron-LM's tools/preprocess_data.py does.

    Each sentence is tokenised by itself and sentences without tokens are dropped; the end-of-document id, if any,
    belongs to the last sentence; a document without tokens gets none and stays in the dataset as an empty one.
    """

    tokenizer: Any
    """Has `tokenize(text) -> ids` and `vocab_size`."""

    keys: tuple[str, ...]
    eod: int | None
    """Appended to every document that has tokens."""

    dtype: type[np.integer]
    """What the dataset stores ids as."""

    def encode(self, raw: bytes) -> EncodedLine:
        """Documents of one line.

        Raises:
            BadLine: the line is malformed, or the tokenizer cannot take its text.
        """
        return {key: self._encode_text(key, text) for key, text in parse_line(raw, self.keys).items()}

    def _encode_text(self, key: str, text: Text) -> Encoded:
        pieces, lengths = [], []
        for sentence in text if isinstance(text, list) else [text]:
            ids = self._tokenize(key, sentence)
            if ids.size:
                pieces.append(ids)
                lengths.append(int(ids.size))
        if pieces and self.eod is not None:
            pieces.append(np.array([self.eod], dtype=self.dtype))
            lengths[-1] += 1
        return Encoded(np.concatenate(pieces) if pieces else np.array([], dtype=self.dtype), lengths)

    def _tokenize(self, key: str, sentence: str) -> np.ndarray:
        try:
            ids = np.array(self.tokenizer.tokenize(sentence), dtype=np.int64)
        except Exception as error:  # every library raises its own kind
            raise BadLine(
                "not_tokenizable", f"the tokenizer refuses {key!r}: {error or type(error).__name__}"
            ) from None
        if ids.size and not (ids.min() >= 0 and ids.max() < self.tokenizer.vocab_size):
            found = int(ids.min()) if ids.min() < 0 else int(ids.max())
            reason = f"{key!r} becomes token id {found}, outside the vocabulary of {self.tokenizer.vocab_size}"
            raise BadLine("not_tokenizable", reason)
        return ids.astype(self.dtype)

    def encode_batch(self, lines: Iterable[CorpusLine]) -> list[EncodedLine | BadLine]:
        """Outcome for each line, in order; what is wrong with a line comes back instead of being raised."""
        outcomes: list[EncodedLine | BadLine] = []
        for line in lines:
            try:
                outcomes.append(self.encode(line.raw))
            except BadLine as bad:
                outcomes.append(bad)
        return outcomes


def encode_corpus(
    encoder: Encoder, lines: Iterable[CorpusLine], workers: int
) -> Generator[tuple[CorpusLine, EncodedLine | BadLine], None, None]:
    """Each line with what became of it, in the order of `lines` whatever the number of workers.

    Args:
        workers: 1 encodes in this process; more are forked from it, and share what it has imported and built.
            Close the generator to stop them early.
    Raises:
        CompeteError: a worker died.
    """
    if workers == 1:
        for line in lines:
            yield line, encoder.encode_batch([line])[0]
        return
    pool = ProcessPoolExecutor(workers, get_context("fork"), _start_worker, (encoder,))
    try:
        yield from _in_order(pool, batched(lines, BATCH_LINES), workers * BATCHES_PER_WORKER)
    except BrokenProcessPool:
        raise CompeteError(
            f"one of {workers} workers died, most likely for lack of memory: try fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, batches: Iterable[tuple[CorpusLine, ...]], in_flight: int
) -> Iterator[tuple[CorpusLine, EncodedLine | BadLine]]:
    """Keep `in_flight` batches with the pool and take them back first in, first out.

    A `Pool.imap` would read on without bound while one slow document holds up the results, and would wait for ever
    for a worker that was killed.
    """
    waiting: deque[tuple[tuple[CorpusLine, ...], Future[list[EncodedLine | BadLine]]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(_encode_in_worker, batch)))
        if len(waiting) >= in_flight:
            done, future = waiting.popleft()
            yield from zip(done, future.result())
    for done, future in waiting:
        yield from zip(done, future.result())


_worker_encoder: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    """Take over the encoder that the fork brought along; leave signals to the parent, which stops its workers."""
    global _worker_encoder
    _worker_encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _encode_in_worker(batch: tuple[CorpusLine, ...]) -> list[EncodedLine | BadLine]:
    assert _worker_encoder is not None
    return _worker_encoder.encode_batch(batch)
