"""Every sample looked at before training, by several processes: what can be used, and what is wrong with the rest."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.progress import Progress
from megatron_compete.data.conversations.bad_samples import BadSample, Finding, details, summary, write_report
from megatron_compete.data.conversations.conversation import id_of
from megatron_compete.data.conversations.json_index import JsonIndex, index_json
from megatron_compete.data.conversations.reader import Checked, Reader
from megatron_compete.data.conversations.sample_list import SampleList, join_lists, summary_lines
from megatron_compete.data.preprocessing.workers import become_worker

VERSION = 1
"""Of the list's form and of what is checked: another one makes lists anew."""

CHUNK = 256
"""Samples that a process looks at in one go."""

IMAGE_KINDS = ("missing_image", "outside_image_folder", "damaged_image", "huge_image")
"""What can be put right without touching the JSON."""

CHECKED_BY = (
    "image_folder", "use_tiling", "max_num_tiles", "use_thumbnail", "truncate", "check_images", "max_image_pixels",
    "allow_image_links",
)  # fmt: skip
"""Settings that decide which samples can be used and how long they are."""


@dataclass(frozen=True)
class _Chunk:
    index: JsonIndex
    file: int
    files: tuple[str, ...]
    start: int
    stop: int


def list_samples(files: Sequence[str], reader: Reader) -> SampleList:
    """Check all samples of the files, whatever is wrong with them.

    Raises:
        CompeteError: a file cannot be read as a list of samples, or a process died.
    """
    names = tuple(files)
    indexes = [index_json(name) for name in names]
    chunks = [
        _Chunk(index, file, names, start, min(start + CHUNK, len(index)))
        for file, index in enumerate(indexes)
        for start in range(0, len(index), CHUNK)
    ]
    if not chunks:
        raise CompeteError(f"no sample in {', '.join(names)}: give files with some")
    total = sum(int(index.sizes.sum()) for index in indexes)
    with Progress("checking conversations", total, unit="samples") as progress:
        parts = []
        for chunk, part in zip(chunks, _checked(chunks, reader)):
            parts.append(part)
            progress.advance(part.total, int(chunk.index.sizes[chunk.start : chunk.stop].sum()))
    return join_lists(parts)


def _checked(chunks: Sequence[_Chunk], reader: Reader) -> Iterator[SampleList]:
    """The chunks' lists in their order."""
    workers = min(reader.config.worker_count, len(chunks))
    if workers == 1:
        yield from (check_chunk(chunk, reader) for chunk in chunks)
        return
    # Forked, as the corpus tools' workers: they share tokenizer and processor, and touch no device.
    with ProcessPoolExecutor(workers, get_context("fork"), _remember, (reader, os.getpid())) as pool:
        try:
            yield from pool.map(_check_remembered, chunks)
        except BrokenProcessPool as error:
            raise CompeteError(
                "a process that checked conversations was killed, most likely for lack of memory: try fewer "
                f"--conversation-workers than {workers}"
            ) from error


_reader: Reader | None = None


def _remember(reader: Reader, parent: int) -> None:
    global _reader
    become_worker(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the pool ends the others where one has died
    _reader = reader


def _check_remembered(chunk: _Chunk) -> SampleList:
    assert _reader is not None
    return check_chunk(chunk, _reader)


def check_chunk(chunk: _Chunk, reader: Reader) -> SampleList:
    """The list of some samples of a file."""
    good: list[tuple[int, Checked]] = []
    findings = []
    for number in range(chunk.start, chunk.stop):
        record = None
        try:
            record = chunk.index.read(number)
            good.append((number, reader.check(record)))
        except BadSample as bad:
            findings.append(Finding(chunk.index.file, number, id_of(record), bad.kind, bad.reason))
    numbers = np.array([number for number, _ in good], dtype=np.int64)
    images = [len(checked.tiles) for _, checked in good]
    return SampleList(
        files=chunk.files,
        file_of=np.full(len(good), chunk.file, dtype=np.int32),
        number=numbers,
        offset=chunk.index.offsets[numbers],
        size=chunk.index.sizes[numbers],
        length=np.array([checked.length for _, checked in good], dtype=np.int64),
        tiles=np.array([count for _, checked in good for count in checked.tiles], dtype=np.int32),
        first_image=np.cumsum([0, *images]).astype(np.int64),
        findings=tuple(findings),
        cut=sum(checked.is_cut for _, checked in good),
        dropped_turns=sum(checked.dropped_turns for _, checked in good),
    )


def fingerprint(files: Sequence[str], reader: Reader) -> str:
    """Sha256 of what a list follows from: files by size and time, tokenizer and template, sizes and settings.

    Raises:
        CompeteError: a file is not there.
    """
    try:
        stats = [(os.path.abspath(file), os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
    except OSError as error:
        raise CompeteError(f"no file {error.filename}: give a JSON array or JSON Lines of conversations") from error
    facts = {
        "version": VERSION,
        "files": stats,
        "chat": reader.chat.fingerprint(),
        "sizes": [reader.seq_length, reader.image_embeddings, reader.pixels.height, reader.pixels.width],
        "settings": {name: getattr(reader.config, name) for name in CHECKED_BY},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def prepare_samples(
    files: Sequence[str], reader: Reader, cache: str | None = None, report: Callable[[str], None] = print
) -> Path:
    """Make the list of samples, or find the one that is there; for one process, before others load it.

    A list that runs read by, under --skip-bad-samples, stays as it is: with one sample more they would go on in another
    order. Where nothing is skipped no run has begun by a list with bad samples, and images may have been put right.

    Args:
        cache: --data-cache-path; default a folder `cache` beside the first file.
        report: takes lines for the log.
    Returns:
        The list's file; beside it lies a report of what was left out, `NAME.bad.json`.
    Raises:
        CompeteError: nothing usable, or bad samples without --skip-bad-samples; the cache cannot be written.
    """
    path = list_path(files, reader, cache)
    samples = SampleList.load(path) if path.exists() else None
    mended = 0 if samples is None else _count_mended(samples, reader)
    if samples is None or (mended and not reader.config.skip_bad):
        mended = 0
        samples = list_samples(files, reader)
        try:
            samples.save(path)
            write_report(path.with_suffix(".bad.json"), samples.findings, samples.total)
        except OSError as error:
            raise CompeteError(
                f"{path.parent} cannot be written ({error.strerror}): give --data-cache-path FOLDER"
            ) from error
    _judge(samples, reader, path, report)
    if mended:
        report(
            f"conversations: {mended} of them have images that can be read now: remove {path} to take them; a run that "
            "goes on then reads in another order"
        )
    return path


def list_path(files: Sequence[str], reader: Reader, cache: str | None = None) -> Path:
    """Where the list of these files lies, or will; arguments as of `prepare_samples`."""
    folder = Path(cache) if cache else Path(files[0]).absolute().parent / "cache"
    return folder / f"conversations-{fingerprint(files, reader)[:16]}.npz"


def _count_mended(samples: SampleList, reader: Reader) -> int:
    """Samples that were left out for an image, and whose images can all be used now; a file is indexed at most once."""
    of_images = [finding for finding in samples.findings if finding.kind in IMAGE_KINDS]
    indexes = {file: index_json(file) for file in {finding.file for finding in of_images}}
    return sum(_has_images(indexes[finding.file].read(finding.number), reader) for finding in of_images)


def _has_images(record: Any, reader: Reader) -> bool:
    try:
        reader.tiles(reader.conversation(record))
    except BadSample:
        return False
    return True


def _judge(samples: SampleList, reader: Reader, path: Path, report: Callable[[str], None]) -> None:
    """Stop at bad samples, or say what is left out."""
    listed = path.with_suffix(".bad.json")
    if samples.findings and not reader.config.skip_bad:
        raise CompeteError(
            f"{samples.findings[0].error()} (it would have {summary(samples.findings, samples.total)}; all of them are in {listed})"
        )
    if not len(samples):
        raise CompeteError(
            f"{', '.join(samples.files)}: {summary(samples.findings, samples.total)}, which is all: see {listed}"
        )
    for line in summary_lines(samples):
        report(f"conversations: {line}")
    if samples.findings:
        report(f"conversations: {summary(samples.findings, samples.total)}, listed in {listed}")
        for line in details(samples.findings):
            report(f"conversations: {line}")
