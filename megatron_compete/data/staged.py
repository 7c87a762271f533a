"""Write aside, then rename: outputs appear complete or not at all."""

import contextlib
import os
import secrets
from types import TracebackType
from typing import Self


class StagedFiles:
    """A set of output files, written under temporary names in their own folders and renamed together.

    Leaving the `with` block without `commit` removes what was written, so a failed run leaves no output:

        with StagedFiles() as staged:
            write(staged.path("corpus.bin"))
            staged.commit()

    Files that existed before stay untouched until `commit`.
    """

    def __init__(self) -> None:
        self._temporary: dict[str, str] = {}
        self._suffix = f".{secrets.token_hex(4)}.tmp"

    def path(self, final: str) -> str:
        """Temporary path to write `final` to; makes its folder. Files are committed in the order of these calls."""
        folder, name = os.path.split(os.path.abspath(final))
        os.makedirs(folder, exist_ok=True)
        return self._temporary.setdefault(final, os.path.join(folder, f".{name}{self._suffix}"))

    def commit(self) -> None:
        """Put every file in its place.

        Older files of the set go first, the last of the set before the others: a crash in between leaves the set
        incomplete, which readers notice, and never a mixture of old and new, which they would not.
        """
        if len(self._temporary) > 1:
            for final in reversed(self._temporary):
                _remove(final)
        for final, temporary in self._temporary.items():
            os.replace(temporary, final)
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
