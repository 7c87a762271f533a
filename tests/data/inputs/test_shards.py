"""A corpus cut into shards that do not depend on who works on them."""

from pathlib import Path

from megatron_compete.data.inputs import find_sources
from megatron_compete.data.inputs.shards import (
    LARGEST_SHARD,
    SMALLEST_SHARD,
    SourceRange,
    default_shard_bytes,
    plan_shards,
)
from megatron_compete.data.inputs.sources import Source
from tests.data.inputs.files import write_jsonl, write_parquet


def test_small_files_share_a_shard_and_large_ones_are_cut(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 10), ("c", 25), ("d", 5), ("e", 200)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"x" * size)
    plan = plan_shards(find_sources([str(tmp_path)]), 30)
    assert [shard.ranges for shard in plan.shards[:3]] == [
        (SourceRange(0, 0, None), SourceRange(1, 0, None)),
        (SourceRange(2, 0, None), SourceRange(3, 0, None)),
        (SourceRange(4, 0, 30),),
    ]
    assert plan.shards[-1].ranges == (SourceRange(4, 180, 200),)
    assert [shard.key for shard in plan.shards] == sorted(shard.key for shard in plan.shards)
    assert len({shard.key for shard in plan.shards}) == len(plan.shards)


def test_row_groups_stay_whole(tmp_path: Path) -> None:
    write_parquet(tmp_path / "c.parquet", {"text": ["word" * 50] * 100}, 10)
    sources = find_sources([str(tmp_path)])
    each = [shard.ranges[0] for shard in plan_shards(sources, 1).shards]
    assert each == [SourceRange(0, group, None if group == 9 else group + 1) for group in range(10)]
    assert [shard.ranges[0] for shard in plan_shards(sources, 10**9).shards] == [SourceRange(0, 0, None)]


def test_shards_of_compressed_files_are_numbered_as_one_goes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl.gz", [{"text": "a"}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b"}])
    plan = plan_shards(find_sources([str(tmp_path)]), 1000)
    assert plan.streams == [0] and [shard.key for shard in plan.shards] == [(1, 0)]
    assert plan.stream_shard(0, 3).ranges == (SourceRange(0, 3000, 4000),)


def test_texts_and_standard_input(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 500)
    plan = plan_shards([*find_sources([str(tmp_path)]), Source("-", "jsonl", None, 0, is_pipe=True)], 100)
    assert [shard.ranges for shard in plan.shards] == [(SourceRange(0, 0, None),)]  # one document
    assert plan.pipe == 1


def test_sizes_follow_the_corpus() -> None:
    sizes = [default_shard_bytes([Source("x", "jsonl", None, size)]) for size in (10, 5 * 10**9, 10**13)]
    assert sizes == [SMALLEST_SHARD, 5 * 10**6, LARGEST_SHARD]
