"""What a worker leaves behind, whole or cut off."""

from pathlib import Path

import numpy as np
import pytest

from megatron_compete.data.bad_documents import BadDocument
from megatron_compete.data.preprocessing.encode import EncodedBatch, EncodedKey
from megatron_compete.data.preprocessing.parts import PartWriter, ShardRecord, is_whole, read_journal

KNOWN = {"engine": "reference", "at_end": False, "disk_bytes": 1, "text_bytes": 1, "checked": 0, "differing": 0}


def batch(*ids: int) -> EncodedBatch:
    array = np.array(ids, dtype=np.uint16)
    return EncodedBatch({"a": EncodedKey(array, [len(ids)], [1]), "b": EncodedKey(array[:0], [], [0])})


def finish(writer: PartWriter, number: int) -> ShardRecord:
    return writer.finish(2, key=(0, number), ranges=[[0, number, None, 1]], **KNOWN)


def test_shards_lie_one_after_the_other_and_an_abandoned_one_leaves_nothing(tmp_path: Path) -> None:
    writer = PartWriter(str(tmp_path / "parts" / "x"), ("a", "b"))
    writer.add(batch(1, 2), 1)
    first = finish(writer, 0)
    writer.begin()
    writer.add(batch(9, 9, 9), 1)  # never finished
    writer.begin()
    writer.add(batch(3), 1)
    writer.add_fault(0, 7, BadDocument("not_json", "why \udc80"))
    second = finish(writer, 1)
    writer.close()
    journal = str(tmp_path / "parts" / "x.journal")
    assert list(read_journal(journal)) == [first, second]
    assert all(map(is_whole, (first, second)))
    assert (tmp_path / "parts" / "x.0.bin").read_bytes() == np.array([1, 2, 3], dtype=np.uint16).tobytes()
    assert [dataset.tokens for dataset in second.datasets] == [1, 0]
    assert second.fault_counts == {"not_json": 1} and second.documents == 1


@pytest.mark.parametrize("cut", [1, 20])
def test_a_journal_line_that_was_cut_off_is_none(tmp_path: Path, cut: int) -> None:
    writer = PartWriter(str(tmp_path / "x"), ("a", "b"))
    records = []
    for number in range(2):
        writer.begin()
        writer.add(batch(number), 1)
        records.append(finish(writer, number))
    writer.close()
    journal = tmp_path / "x.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert list(read_journal(str(journal))) == records[:1]


@pytest.mark.parametrize("suffix", [".0.bin", ".index"])
def test_a_part_that_is_damaged_is_noticed(tmp_path: Path, suffix: str) -> None:
    writer = PartWriter(str(tmp_path / "x"), ("a", "b"))
    writer.add(batch(1, 2, 3), 1)
    record = finish(writer, 0)
    writer.close()
    whole = (tmp_path / f"x{suffix}").read_bytes()
    for content in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
        (tmp_path / f"x{suffix}").write_bytes(content)
        assert not is_whole(record)
    (tmp_path / f"x{suffix}").unlink()
    assert not is_whole(record)
