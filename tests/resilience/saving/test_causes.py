"""Every way in which a shard can fail to be written names the system's error; `/dev/full` is a full disk."""

import errno
import functools
import gc
import io
import multiprocessing
import os
import pickle
import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint.filesystem import _StorageWriterTransforms
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from megatron_compete.resilience.saving.causes import cause, cause_of_rank, naming_causes, room, write_shards

FULL = "No space left on device"
UPSTREAM = functools.partial(FileSystemWriterAsync.write_preloaded_data_multithread, [_StorageWriterTransforms()], False)  # fmt: skip

Bucket = tuple[str, str, tuple[list[Any], list[Any]]]


def tensors(path: Path | str, size: int = 70_000) -> Bucket:
    return (str(path), "shard", ([], [(WriteItem(MetadataIndex("t"), WriteItemType.TENSOR), torch.zeros(size))]))


def objects(path: Path | str, data: io.BytesIO) -> Bucket:
    return (str(path), "shard", ([(WriteItem(MetadataIndex("o"), WriteItemType.BYTE_IO), data)], []))


def heard(write: Callable[..., None], *buckets: Bucket, results: Any = None) -> str:
    """What rank 0 is told of a rank that cannot write `buckets`, by Megatron's own way of collecting it."""
    results = queue.SimpleQueue() if results is None else results
    write(0, list(buckets), results)
    return collected(buckets, results)


def collected(buckets: Any, results: Any) -> str:
    writer = FileSystemWriterAsync.__new__(FileSystemWriterAsync)
    writer.write_buckets, writer.results_queue = list(buckets), results
    answer = writer.retrieve_write_results()
    assert isinstance(answer, tuple), answer
    return cause_of_rank(answer[0])


ours = functools.partial(write_shards, UPSTREAM)


class NearlyFull(io.FileIO):
    """A file on a disk with room for 2000 bytes, all of them on it: closing finds nothing more to write."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > 2_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.fixture
def nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path on such a disk."""
    monkeypatch.setattr(filesystem_async, "open", NearlyFull, raising=False)
    return tmp_path / "shard"


@pytest.mark.parametrize("size", [1, 70_000])
def test_within_a_tensor(size: int) -> None:
    assert heard(ours, tensors("/dev/full", size)) == f"[Errno {errno.ENOSPC}] {FULL}"


def test_within_a_tensor_where_torch_raises_an_error_of_its_own(nearly_full: Path) -> None:
    assert heard(ours, tensors(nearly_full)) == f"[Errno {errno.ENOSPC}] {FULL}"


def test_within_an_object() -> None:
    assert FULL in heard(ours, objects("/dev/full", io.BytesIO(b"x" * 50_000)))


def test_while_opening(tmp_path: Path) -> None:
    assert heard(ours, tensors(tmp_path / "nowhere/shard")).endswith(f"No such file or directory: '{tmp_path}/nowhere/shard'")  # fmt: skip


def test_while_the_file_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", fsync)
    assert heard(ours, tensors(tmp_path / "shard")) == f"[Errno {errno.EDQUOT}] Disk quota exceeded"


def test_in_a_thread(tmp_path: Path) -> None:
    """Megatron writes the last bucket itself and the others in threads, of whose failure it says nothing."""
    assert FULL in heard(ours, tensors("/dev/full"), tensors(tmp_path / "whole"))


def test_in_a_forked_process() -> None:
    context = multiprocessing.get_context("fork")
    results, bucket = context.Queue(), tensors("/dev/full")
    process = context.Process(target=ours, args=(0, [bucket], results))
    process.start()
    outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outcome.put(results.get(timeout=120))
    process.join(120)
    assert FULL in collected([bucket], outcome)


def test_a_writer_process_gets_it_with_its_work() -> None:
    """`--use-persistent-ckpt-worker` starts a process without our changes and sends it what it shall do."""
    write, _, _ = naming_causes(lambda writer: (UPSTREAM, None, []), None)
    assert write is not None and FULL in heard(pickle.loads(pickle.dumps(write)), tensors("/dev/full"))
    assert naming_causes(lambda writer: (None, None, []), None) == (None, None, [])


def test_a_writer_that_was_killed() -> None:
    class Empty:
        def get_nowait(self) -> Any:
            raise queue.Empty

    assert collected([tensors("/dev/full")], Empty()) == "its writer ended before it was done"


def test_what_can_be_written_is(tmp_path: Path) -> None:
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    upstream = FileSystemWriterAsync.write_preloaded_data
    ours(0, [tensors(tmp_path / "one"), objects(tmp_path / "two", io.BytesIO(b"x"))], results)
    assert {file: [one.index.fqn for one in written] for file, written in results.get().items()} == {0: ["t"], 1: ["o"]}
    assert torch.equal(torch.load(tmp_path / "one"), torch.zeros(70_000)) and (tmp_path / "two").read_bytes() == b"x"
    assert FileSystemWriterAsync.write_preloaded_data is upstream


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_nothing_is_left_to_the_garbage_collector(no_collection: None) -> None:
    """It would crash on the view of a buffer, up to Python 3.12.1; a buffer with a view cannot grow."""
    data = io.BytesIO(b"x" * 50_000)
    heard(ours, objects("/dev/full", data))
    data.seek(0, io.SEEK_END)
    assert data.write(b"x" * 1_000_000) == 1_000_000


def test_the_error_nearest_to_what_was_raised_counts() -> None:
    error = RuntimeError("unexpected pos 704 vs 598\nand a trace")
    assert cause(error) == "RuntimeError: unexpected pos 704 vs 598"
    error.__context__ = OSError(errno.ENOSPC, FULL)
    error.__context__.__context__ = FileNotFoundError("an old one")
    assert cause(error) == f"[Errno {errno.ENOSPC}] {FULL}"
    error.__suppress_context__ = True
    assert cause(error).startswith("RuntimeError")


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"f_bavail": 0}, "its file system was found to be full"),
        ({"f_files": 9, "f_favail": 0}, "its file system was found to have no room for another file"),
        ({"f_bavail": 5_000, "f_frsize": 4_000, "f_files": 0, "f_favail": 0}, "20 MB were free"),
    ],
)
def test_the_room_there_is(seen: dict[str, int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(tmp_path)
    fields = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_flag", "f_namemax")  # fmt: skip
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([seen.get(name, getattr(found, name)) for name in fields]))  # fmt: skip
    assert room(tmp_path) == said


def test_room_is_what_df_says(tmp_path: Path) -> None:
    assert abs(float(room(tmp_path).split()[0]) * 1e6 - shutil.disk_usage(tmp_path).free) < 1e9


def test_upstream_still_needs_it(nearly_full: Path) -> None:
    """Fails when torch raises the system's error itself, or Megatron hands on what a writer says."""
    outcome = FileSystemWriterAsync.write_preloaded_data([_StorageWriterTransforms()], 0, tensors(nearly_full), None, None, True)  # fmt: skip
    assert "unexpected pos" in str(outcome[1]) and FULL not in str(outcome[1]) and FULL in str(outcome[1].__context__)
    assert heard(UPSTREAM, tensors(nearly_full)).endswith("error: <class 'RuntimeError'>")
