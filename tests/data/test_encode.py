"""Documents to ids, in order, in this process or in workers."""

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

from megatron_compete.data.corpus import BadLine, CorpusLine
from megatron_compete.data.encode import BATCH_LINES, Encoder, encode_corpus
from megatron_compete.errors import CompeteError


class Digits:
    """A tokenizer of digits; other characters do something odd."""

    vocab_size = 9

    def __init__(self) -> None:
        self.home = os.getpid()

    def tokenize(self, text: str) -> list[int]:
        if "slow" in text:
            time.sleep(0.3)
            return [0]
        if "crash" in text and os.getpid() != self.home:
            os._exit(9)
        return [int(character) for character in text]


def encoder(eod: int | None = 8) -> Encoder:
    return Encoder(Digits(), ("text",), eod, np.uint16)


def outcome(raw: str, eod: int | None = 8) -> tuple[list[int], list[int]]:
    ids, lengths = encoder(eod).encode(raw.encode())["text"]
    assert ids.dtype == np.uint16
    return ids.tolist(), lengths


def test_documents_and_sentences() -> None:
    assert outcome('{"text": "123"}') == ([1, 2, 3, 8], [4])
    assert outcome('{"text": "123"}', eod=None) == ([1, 2, 3], [3])
    assert outcome('{"text": ["12", "", "3"]}') == ([1, 2, 3, 8], [2, 2])
    assert outcome('{"text": ["12", "3", ""]}') == ([1, 2, 3, 8], [2, 2])
    for empty in ('""', "[]", '["", ""]'):
        assert outcome(f'{{"text": {empty}}}') == ([], [])


@pytest.mark.parametrize(("text", "words"), [("12x", "refuses 'text': invalid literal"), ("19", "token id 9, outside")])
def test_texts_the_tokenizer_cannot_take(text: str, words: str) -> None:
    with pytest.raises(BadLine) as caught:
        encoder().encode(f'{{"text": "{text}"}}'.encode())
    assert caught.value.kind == "not_tokenizable"
    assert words in caught.value.reason


def lines(texts: list[str]) -> list[CorpusLine]:
    return [CorpusLine("f", number, f'{{"text": "{text}"}}'.encode()) for number, text in enumerate(texts, start=1)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_order_is_the_corpus_order(workers: int) -> None:
    count = 3 * BATCH_LINES + 5
    texts = ["slow", *(str(index % 8) for index in range(1, count))]
    texts[7] = "bad"
    results = list(encode_corpus(encoder(), lines(texts), workers))
    assert [line.number for line, _ in results] == list(range(1, count + 1))
    for index, (_, done) in enumerate(results):
        if index == 7:
            assert isinstance(done, BadLine) and done.kind == "not_tokenizable" and "invalid literal" in done.reason
        else:
            assert not isinstance(done, BadLine)
            assert done["text"].ids.tolist() == [index % 8, 8]


def test_reading_stays_a_bounded_way_ahead() -> None:
    read = 0

    def endless() -> Iterator[CorpusLine]:
        nonlocal read
        while True:
            read += 1
            yield CorpusLine("f", read, b'{"text": "1"}')

    results = encode_corpus(encoder(), endless(), workers=2)
    next(results)
    results.close()
    assert read <= 2 * 4 * BATCH_LINES


def test_a_dead_worker_is_an_error_and_not_a_hang() -> None:
    with pytest.raises(CompeteError, match="one of 2 workers died"):
        list(encode_corpus(encoder(), lines(["1", "crash"]), workers=2))
