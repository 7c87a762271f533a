"""A corpus read in order, and samples of it."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.bad_documents import SkipLog
from megatron_compete.data.inputs import InputOptions, find_sources, no_documents, read_documents, sample_texts
from tests.data.inputs.files import write_jsonl, write_parquet


def test_every_form_in_order(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl.zst", [{"text": "1"}, b"", {"text": ["2", "3"]}])
    write_parquet(tmp_path / "b.parquet", {"other": [0, 0], "text": ["4", "5"]}, 1)
    (tmp_path / "c.txt").write_text("6\n\n7\n")
    taken: list[int] = []
    sources = find_sources([str(tmp_path)], InputOptions("auto", "blank-line"))
    documents = list(read_documents(sources, "text", SkipLog(), taken.append))
    assert [(Path(one.file).name, one.number, one.text) for one in documents] == [
        ("a.jsonl.zst", 1, "1"),
        ("a.jsonl.zst", 3, "23"),
        ("b.parquet", 1, "4"),
        ("b.parquet", 2, "5"),
        ("c.txt", 1, "6"),
        ("c.txt", 3, "7"),
    ]
    assert sum(taken) == sum(source.bytes for source in sources)


def test_faults_follow_the_policy(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "1"}, b"{", {"text": "2"}])
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b")
    sources = find_sources([str(tmp_path)])
    with pytest.raises(CompeteError, match=r"a\.jsonl:2: not JSON"):
        list(read_documents(sources, "text", SkipLog()))
    skips = SkipLog("skip")
    assert [document.text for document in read_documents(sources, "text", skips)] == ["1", "2"]
    assert dict(skips.counts) == {"not_json": 1, "damaged": 1}
    assert f"{path}:2" in str(no_documents(sources, "text", skips))


def test_a_sample_is_spread_over_the_corpus(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"{index:06d}" * 20} for index in range(5000)])
    write_jsonl(tmp_path / "b.jsonl.gz", [{"text": f"b{index}"} for index in range(50_000)])
    sources = find_sources([str(tmp_path)])
    texts = sample_texts(sources, ["text"], 30_000)
    numbers = [int(text[:6]) for text in texts if not text.startswith("b")]
    assert numbers == sorted(numbers) and numbers[0] == 0 and numbers[-1] > 4500
    assert any(text.startswith("b") for text in texts)
    assert 15_000 < sum(map(len, texts)) < 60_000


def test_a_small_corpus_is_its_own_sample(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "title": ["y", "z"]}, b"{", {"text": "w", "title": "v"}])
    assert sample_texts(find_sources([str(tmp_path)]), ["text", "title"], 1000) == ["x", "y", "z", "w", "v"]
