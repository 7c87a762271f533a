"""What part of a corpus a tokenizer sees."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_compete.data.corpus import SkipLog
from megatron_compete.data.sample import chunk_text, read_sample
from megatron_compete.errors import CompeteError
from tests.data.conftest import WriteCorpus


@given(st.text(alphabet="ab \n🙂", max_size=60), st.integers(1, 9))
def test_chunks_lose_nothing_and_stay_short(text: str, characters: int) -> None:
    chunks = list(chunk_text(text, characters))
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= characters for chunk in chunks)


def test_chunks_end_after_newlines() -> None:
    assert list(chunk_text("aa\nbb\ncccccccc\n", 7)) == ["aa\nbb\n", "ccccccc", "c\n"]


def test_sample_is_even_and_bounded(write_corpus: WriteCorpus) -> None:
    path = write_corpus({"text": f"{index:04d}" * 25} for index in range(1000))
    sample = read_sample([path], "text", 20_000, SkipLog(), log_interval=10_000)
    taken = [int(chunk[:4]) for chunk in sample.chunks]
    assert 15_000 < sample.bytes <= 20_000
    assert sample.documents == len(taken)
    assert max(after - before for before, after in pairwise(taken)) <= 7
    assert taken[0] == 0 and taken[-1] > 980


def test_no_limit_takes_everything(write_corpus: WriteCorpus) -> None:
    path = write_corpus([{"text": "é" * 5000}, {"text": ""}, {"text": ["a", "b"]}])
    sample = read_sample([path], "text", 0, SkipLog(), log_interval=10_000)
    assert (sample.documents, sample.bytes) == (2, 10_002)
    assert [len(chunk) for chunk in sample.chunks] == [4000, 1000, 2]


def test_one_long_document_is_cut(write_corpus: WriteCorpus) -> None:
    path = write_corpus([{"text": "a" * 100_000}])
    assert read_sample([path], "text", 10_000, SkipLog(), log_interval=10_000).bytes == 8000


def test_bad_lines_follow_the_policy(write_corpus: WriteCorpus) -> None:
    path = write_corpus([{"text": "a"}, "{"])
    with pytest.raises(CompeteError, match=r"corpus\.jsonl:2: not JSON"):
        read_sample([path], "text", 0, SkipLog(), log_interval=10_000)
    skips = SkipLog("skip")
    assert read_sample([path], "text", 0, skips, log_interval=10_000).bytes == 1
    assert skips.total == 1
