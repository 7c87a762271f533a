"""TensorBoard's event files, read as they grow.

`EventAccumulator` keeps a Python object for each point and reads a folder anew each time; here a point is 24 bytes, and a
second `read` goes on where the first one ended. A file is records of [length u64][its CRC u32][an Event][CRC u32]
(tensorflow/core/lib/io/record_writer.h). What a kill cut off, or what is being written right now, is no whole record and
waits for the next `read`; a record that is none ends its file, with a note.
"""

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_compete.report.sampling import Floats

PATTERN = "*tfevents*"
CHUNK = 1 << 22
LARGEST = 1 << 26
"""Bytes of a record at most; a damaged length may say anything."""
TEXT = "/text_summary"
"""How torch ends the names of texts; Megatron writes its arguments as texts."""
LONGEST, MOST_TEXTS = 2000, 5000
"""Characters of a text that are kept, and texts."""


@dataclass
class Points:
    """A scalar as it was logged."""

    steps: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))
    times: array = field(default_factory=lambda: array("d"))

    def forget_from(self, step: int) -> None:
        """Drop what was logged at `step` and later."""
        keep = np.flatnonzero(np.array(self.steps, dtype=np.int64) < step)
        if len(keep) < len(self.steps):
            for name in ("steps", "values", "times"):
                old = getattr(self, name)
                setattr(self, name, array(old.typecode, np.asarray(old)[keep].tobytes()))


@dataclass(frozen=True)
class Curve:
    """A scalar by step: ascending, each step once, with the value that was logged last."""

    steps: NDArray[np.int64]
    values: Floats
    times: Floats
    """Epoch seconds."""


@dataclass(frozen=True)
class Session:
    """A start of the trainer."""

    step: int
    """The first that it logs."""
    time: float


class EventFolder:
    """The event files of one folder, those below it aside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sessions: list[Session] = []
        self.texts: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        """What could not be read, by file."""
        self._points: dict[str, Points] = {}
        self._offsets: dict[Path, int] = {}
        self._damaged: set[Path] = set()

    def files(self) -> list[Path]:
        """The event files in the order of their beginnings, which stand in their names."""
        return sorted(path for path in self.folder.glob(PATTERN) if path.is_file())

    def read(self) -> None:
        """Read what is new. Files that shrank or went away are another run's: then all is read anew."""
        files = self.files()
        if any(path not in files or path.stat().st_size < offset for path, offset in self._offsets.items()):
            self.__init__(self.folder)  # type: ignore[misc]
        for path in files:
            if path not in self._damaged:
                self._read(path)

    def tags(self) -> list[str]:
        """Names of the scalars that have a point."""
        return sorted(tag for tag, points in self._points.items() if len(points.steps))

    def curve(self, tag: str) -> Curve | None:
        """A scalar; None where it was never logged."""
        points = self._points.get(tag)
        if points is None or not len(points.steps):
            return None
        steps, values, times = (np.array(part) for part in (points.steps, points.values, points.times))
        if not (np.diff(steps) > 0).all():
            order = np.argsort(steps, kind="stable")
            last = order[np.append(np.diff(steps[order]) > 0, True)]
            steps, values, times = steps[last], values[last], times[last]
        return Curve(steps, values, times)

    def _read(self, path: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        offset = self._offsets.get(path, 0)
        self.notes.pop(path.name, None)
        try:
            for record in _records(path, offset):
                event = Event.FromString(record)
                offset += len(record) + 16
                self._take(event)
        except OSError as error:
            self.notes[path.name] = f"cannot be read: {error.strerror}"
        except Exception:  # protobuf's own error is of another class in each of its implementations
            self._damaged.add(path)
            self.notes[path.name] = f"is damaged at byte {offset}: what follows is not shown"
        self._offsets[path] = offset
        left = path.stat().st_size - offset if path.exists() else 0
        if left and path.name not in self.notes:
            self.notes[path.name] = (
                f"ends with {left} bytes that are no whole record: it was cut off, or is being written"
            )

    def _take(self, event: "object") -> None:
        time, step = event.wall_time, event.step  # type: ignore[attr-defined]
        if event.HasField("session_log"):  # type: ignore[attr-defined]
            if event.session_log.status == event.session_log.START:  # type: ignore[attr-defined]
                self.sessions.append(Session(step, time))
                for points in self._points.values():
                    points.forget_from(step)
            return
        for value in event.summary.value:  # type: ignore[attr-defined]
            kind = value.WhichOneof("value")
            if kind == "simple_value":
                self._add(value.tag, step, value.simple_value, time)
            elif kind == "tensor":
                self._add_tensor(value, step, time)

    def _add(self, tag: str, step: int, number: float, time: float) -> None:
        points = self._points.get(tag)
        if points is None:
            points = self._points[tag] = Points()
        points.steps.append(step)
        points.values.append(number)
        points.times.append(time)

    def _add_tensor(self, value: "object", step: int, time: float) -> None:
        """A scalar of `add_scalar(new_style=True)`, or a text."""
        from tensorboard.util.tensor_util import make_ndarray

        tag, tensor = value.tag, value.tensor  # type: ignore[attr-defined]
        if tensor.string_val:
            if tag.endswith(TEXT) and (tag in self.texts or len(self.texts) < MOST_TEXTS):
                self.texts[tag.removesuffix(TEXT)] = tensor.string_val[0][:LONGEST].decode(errors="replace")
            return
        numbers = make_ndarray(tensor)
        if numbers.size == 1 and numbers.dtype.kind in "fiu":
            self._add(tag, step, float(numbers.reshape(())), time)


def _records(path: Path, offset: int) -> Iterator[bytes]:
    """The whole records of a file from a byte on.

    Raises:
        ValueError: a length whose checksum is wrong.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        held, at = b"", 0
        while chunk := file.read(CHUNK):
            held, at = held[at:] + chunk, 0
            while len(held) - at >= 12:
                (length,) = _LENGTH.unpack_from(held, at)
                if length > LARGEST or _CRC.unpack_from(held, at + 8)[0] != _crc_of_length(held[at : at + 8]):
                    raise ValueError("no record")
                if len(held) - at < length + 16:
                    break
                yield held[at + 12 : at + 12 + length]
                at += length + 16


_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")
_CRCS: dict[bytes, int] = {}


def _crc_of_length(length: bytes) -> int:
    """Masked CRC-32C; a file has few different lengths, and the checksum in Python takes its time."""
    crc = _CRCS.get(length)
    if crc is None:
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

        crc = masked_crc32c(length)
        if len(_CRCS) < 1 << 16:
            _CRCS[length] = crc
    return crc
