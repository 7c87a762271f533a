"""What part of a corpus a tokenizer sees."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.bad_documents import SkipLog
from megatron_compete.data.inputs import find_sources
from megatron_compete.data.sample import Sample, chunk_text, read_sample
from tests.data.conftest import WriteCorpus


def sample_of(*paths: str | Path, limit: int, skips: SkipLog | None = None) -> Sample:
    return read_sample(find_sources([str(path) for path in paths]), "text", limit, skips or SkipLog())


@given(st.text(alphabet="ab \n🙂", max_size=60), st.integers(1, 9))
def test_chunks_lose_nothing_and_stay_short(text: str, characters: int) -> None:
    chunks = list(chunk_text(text, characters))
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= characters for chunk in chunks)


def test_chunks_end_after_newlines() -> None:
    assert list(chunk_text("aa\nbb\ncccccccc\n", 7)) == ["aa\nbb\n", "ccccccc", "c\n"]


def test_sample_is_bounded_and_from_everywhere(write_corpus: WriteCorpus) -> None:
    path = write_corpus({"text": f"{index:04d}" * 25} for index in range(1000))
    sample = sample_of(path, limit=20_000)
    taken = sorted(int(chunk[:4]) for chunk in sample.chunks)
    assert (sample.bytes, sample.documents) == (20_000, 200)
    assert all(20 <= sum(low <= index < low + 250 for index in taken) <= 80 for low in range(0, 1000, 250))


def test_order_and_files_make_no_difference(tmp_path: Path) -> None:
    draw = random.Random(5)
    texts = [draw.choice("abc\n") * draw.randint(0, 9000) + str(index % 150) for index in range(200)]
    texts += texts[:20]
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "one.jsonl").write_text("".join(lines))
    draw.shuffle(lines)
    (tmp_path / "a.jsonl").write_text("".join(lines[:70]))
    (tmp_path / "b.jsonl").write_text("".join(lines[70:]))
    for limit in (0, 1000, 50_000, 300_000):
        one = sample_of(tmp_path / "one.jsonl", limit=limit)
        split = sample_of(tmp_path / "b.jsonl", tmp_path / "a.jsonl", limit=limit)
        assert one == split
        assert not limit or one.bytes <= max(limit, 4000)


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(write_corpus: WriteCorpus) -> None:
    path = write_corpus({"text": "ab" * index} for index in range(1, 400))
    small, large = sample_of(path, limit=10_000), sample_of(path, limit=40_000)
    assert large.chunks[: len(small.chunks)] == small.chunks


def test_no_limit_takes_everything(write_corpus: WriteCorpus) -> None:
    sample = sample_of(write_corpus([{"text": "é" * 5000}, {"text": ""}, {"text": ["a", "b"]}]), limit=0)
    assert (sample.documents, sample.bytes) == (2, 10_002)
    assert sorted(len(chunk) for chunk in sample.chunks) == [2, 1000, 4000]


def test_one_long_document_is_cut(write_corpus: WriteCorpus) -> None:
    path = write_corpus([{"text": "a" * 100_000}])
    assert sample_of(path, limit=10_000).bytes == 8000
    assert sample_of(path, limit=10).bytes == 4000


def test_bad_documents_follow_the_policy(write_corpus: WriteCorpus) -> None:
    path = write_corpus([{"text": "a"}, "{"])
    with pytest.raises(CompeteError, match=r"corpus\.jsonl:2: not JSON"):
        sample_of(path, limit=0)
    skips = SkipLog("skip")
    assert sample_of(path, limit=0, skips=skips).bytes == 1
    assert skips.total == 1
