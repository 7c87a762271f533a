"""The usable samples of a dataset: where each lies, how long it is and how many tiles its images have.

Made once, by one process, and read by all ranks, so that all of them and all pipeline stages mean the same sample by the
same number.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole
from megatron_compete.data.conversations.bad_samples import Finding
from megatron_compete.data.conversations.json_index import JsonIndex, Offsets

ARRAYS = ("file_of", "number", "offset", "size", "length", "tiles", "first_image")
"""Fields of a list that are arrays."""


@dataclass(frozen=True)
class SampleList:
    """Usable samples in the order of the files, and what was left out."""

    files: tuple[str, ...]
    file_of: NDArray[np.int32]
    """Of each sample, its place in `files`."""
    number: Offsets
    """Within its file, from 0."""
    offset: Offsets
    size: Offsets
    length: Offsets
    """Positions, image embeddings included."""
    tiles: NDArray[np.int32]
    """Of every image, sample after sample."""
    first_image: Offsets
    """[samples + 1]: where a sample's images begin among `tiles`."""
    findings: tuple[Finding, ...]
    """Samples that cannot be used."""
    cut: int
    """Samples that are longer than --seq-length and lose their end."""
    dropped_turns: int
    """Answers before a first question."""

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def total(self) -> int:
        """Samples of the files, bad ones too."""
        return len(self) + len(self.findings)

    @property
    def has_images(self) -> NDArray[np.bool_]:
        """Of each sample."""
        return np.diff(self.first_image) > 0

    @property
    def identity(self) -> str:
        """`665298 samples (1f0c5a2e)`: another one where these are others, or in another order, or of other lengths."""
        digest = hashlib.sha256()
        for name in ("file_of", "number", "length", "tiles", "first_image"):
            digest.update(getattr(self, name).tobytes())
        return f"{len(self)} samples ({digest.hexdigest()[:8]})"

    def tiles_of(self, sample: int) -> list[int]:
        """Tiles of each of a sample's images."""
        found: list[int] = self.tiles[self.first_image[sample] : self.first_image[sample + 1]].tolist()
        return found

    def index_of(self, sample: int) -> tuple[JsonIndex, int]:
        """A file's samples, and which of them this one is."""
        return self._indexes[self.file_of[sample]], sample - int(self._first_of_file[self.file_of[sample]])

    @cached_property
    def _first_of_file(self) -> NDArray[np.int64]:
        return np.searchsorted(self.file_of, np.arange(len(self.files)))

    @cached_property
    def _indexes(self) -> list[JsonIndex]:
        return [
            JsonIndex(name, self.offset[self.file_of == file], self.size[self.file_of == file])
            for file, name in enumerate(self.files)
        ]

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ARRAYS}
        rest = {
            "files": self.files,
            "findings": [vars(finding) for finding in self.findings],
            "cut": self.cut,
            "dropped_turns": self.dropped_turns,
        }
        buffer = io.BytesIO()
        np.savez(buffer, rest=np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8), **arrays)
        write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "SampleList":
        """Read it.

        Raises:
            CompeteError: the file is damaged.
        """
        try:
            with np.load(path) as stored:
                arrays = {name: stored[name] for name in stored.files}
            rest = json.loads(arrays.pop("rest").tobytes())
            findings = tuple(Finding(**finding) for finding in rest.pop("findings"))
            return cls(files=tuple(rest.pop("files")), findings=findings, **arrays, **rest)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise CompeteError(f"{path} is damaged ({error}): remove it, and the next start makes it anew") from error


def summary_lines(samples: SampleList) -> list[str]:
    """What is in it, for the log."""
    with_images = int(samples.has_images.sum())
    lines = [
        f"{len(samples)} samples ({with_images} with images, {len(samples) - with_images} without), "
        f"{len(samples.tiles)} images in {int(samples.tiles.sum())} tiles, {int(samples.length.sum())} positions"
    ]
    if samples.cut:
        lines.append(f"{samples.cut} samples lose their end (--truncate-conversations)")
    if samples.dropped_turns:
        lines.append(f"{samples.dropped_turns} answers before a first question are left out, as LLaVA does")
    return lines


def join_lists(parts: Sequence[SampleList]) -> SampleList:
    """One list of several with the same `files`, in their order."""
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS if name != "first_image"}
    images = np.concatenate([np.diff(part.first_image) for part in parts])
    return SampleList(
        files=parts[0].files,
        first_image=np.concatenate([[0], np.cumsum(images)]).astype(np.int64),
        findings=tuple(finding for part in parts for finding in part.findings),
        cut=sum(part.cut for part in parts),
        dropped_turns=sum(part.dropped_turns for part in parts),
        **arrays,
    )
