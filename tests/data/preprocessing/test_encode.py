"""Documents to ids, as Megatron-LM's tool does it."""

from collections.abc import Sequence

import numpy as np
import pytest

from megatron_compete.data.engines import EngineDiffers
from megatron_compete.data.preprocessing.encode import DocumentEncoder, EncodedBatch


class Digits:
    """An engine for digits; other characters are refused."""

    checked = differing = 0

    def start_shard(self, shard: int) -> None:
        """Nothing to do."""

    def encode_batch(self, texts: list[str]) -> list[Sequence[int] | np.ndarray]:
        if "differs" in texts:
            raise EngineDiffers("it differs")
        huge = {"huge": [2**40], "low": [-1], "array": np.array([3, 4], dtype=np.uint32)}
        return [huge[text] if text in huge else [int(digit) for digit in text] for text in texts]


def encoder(eod: int | None = 8, reject_empty: bool = False) -> DocumentEncoder:
    return DocumentEncoder(Digits(), ("text",), 9, eod, np.uint16, reject_empty)  # type: ignore[arg-type]


def outcome(batch: EncodedBatch) -> tuple[list[int], list[int], list[int]]:
    encoded = batch.keys["text"]
    assert encoded.ids.dtype == np.uint16
    return encoded.ids.tolist(), encoded.lengths, encoded.sentences


def test_documents_and_sentences() -> None:
    documents = [{"text": "123"}, {"text": ""}, {"text": ["12", "", "3"]}, {"text": ["1", ""]}, {"text": []}]
    batch = encoder().encode(documents)  # type: ignore[arg-type]
    assert outcome(batch) == ([1, 2, 3, 8, 1, 2, 3, 8, 1, 8], [4, 2, 2, 2], [1, 0, 2, 1, 0])
    assert (batch.empty, batch.faults) == (2, [])
    assert outcome(encoder(eod=None).encode([{"text": "12"}, {"text": "array"}])) == ([1, 2, 3, 4], [2, 2], [1, 1])
    assert outcome(encoder().encode([])) == ([], [], [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1x", "refuses 'text': invalid literal"),
        ("19", "token id 9, outside"),
        ("huge", "token id 10995"),
        ("low", "-1"),
    ],
)
def test_a_text_the_tokenizer_cannot_take_leaves_the_others(text: str, words: str) -> None:
    batch = encoder().encode([{"text": "1"}, {"text": text}, {"text": "2"}])
    assert outcome(batch) == ([1, 8, 2, 8], [2, 2], [1, 1])
    ((place, bad),) = batch.faults
    assert (place, bad.kind) == (1, "not_tokenizable") and words in bad.reason


def test_empty_documents_can_be_rejected() -> None:
    batch = encoder(reject_empty=True).encode([{"text": "1"}, {"text": ["", ""]}])
    assert outcome(batch) == ([1, 8], [2], [1])
    assert [(place, bad.kind) for place, bad in batch.faults] == [(1, "empty")] and batch.empty == 0


def test_a_difference_is_passed_on() -> None:
    with pytest.raises(EngineDiffers):
        encoder().encode([{"text": "1"}, {"text": "differs"}])
