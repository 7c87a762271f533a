"""Write aside, then rename: outputs appear complete or not at all."""

import contextlib
import os
import secrets
from types import TracebackType
from typing import Self

from megatron_compete.common.files import sync


class StagedFiles:
    """A set of output files, written under temporary names in their own folders and renamed together.

    Leaving the `with` block without `commit` removes what was written, so a failed run leaves no output:

        with StagedFiles() as staged:
            write(staged.path("corpus.bin"))
            staged.commit()

    Files that existed before stay untouched until `commit`, which returns when the new ones are on the disk.

    Args:
        folder: where temporary files lie instead, under names that a later try overwrites; on the same file system.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._temporary: dict[str, str] = {}
        self._retired: list[str] = []
        self._folder = folder
        self._suffix = f".{secrets.token_hex(4)}.tmp"

    def path(self, final: str) -> str:
        """Temporary path to write `final` to; makes its folder. Files are committed in the order of these calls."""
        folder, name = os.path.split(os.path.abspath(final))
        os.makedirs(folder, exist_ok=True)
        aside = os.path.join(self._folder, name) if self._folder else os.path.join(folder, f".{name}{self._suffix}")
        return self._temporary.setdefault(final, aside)

    def retire(self, old: str) -> None:
        """Remove `old` at `commit`: it belonged to the files that are replaced, and the new set has none."""
        self._retired.append(old)

    def commit(self) -> None:
        """Put every file in its place.

        Older files of the set go first, the last of the set before the others: a crash in between leaves the set
        incomplete, which readers notice, and never a mixture of old and new, which they would not.
        """
        for temporary in self._temporary.values():
            sync(temporary)
        if len(self._temporary) + len(self._retired) > 1:
            for final in (*reversed(self._temporary), *self._retired):
                _remove(final)
        for final, temporary in self._temporary.items():
            os.replace(temporary, final)
        for folder in {os.path.dirname(os.path.abspath(final)) for final in self._temporary}:
            sync(folder)
        self._temporary.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for temporary in self._temporary.values():
            _remove(temporary)
        self._temporary.clear()


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)
