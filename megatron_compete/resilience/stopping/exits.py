"""Which exit Megatron took: it ends a run with `sys.exit()` in some twenty places, most of them because something is wrong.

Few of these exits are what was asked for; they are told by the function that takes them (Megatron-LM 0.19.2). Of all others
no code says that they are failures: `--exit-on-missing-checkpoint`, a tracker or a legacy checkpoint that cannot be read, a
checkpoint without random state.
"""

import builtins
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any

from megatron_compete.launch.run_files import Outcome
from megatron_compete.upstream import replace_symbol

ASKED_FOR: dict[tuple[str, str], tuple[Outcome, str]] = {
    ("training.py", "setup_model_and_optimizer"): ("finished", "converted the checkpoint (--ckpt-convert-format)"),
    ("common_utils.py", "check_adlr_autoresume_termination"): ("stopped", "told to stop (--adlr-autoresume)"),
    ("global_vars.py", "_graceful_shutdown"): ("stopped", "told to stop; nothing was saved (--exit-signal-handler saves)"),
}  # fmt: skip
"""File and function of the exits that are."""

HELP = ("argparse.py", "exit")


class LastWords:
    """The latest line that was printed, and the function that printed it: mostly the reason for an exit is printed first."""

    def __init__(self) -> None:
        self.text = ""
        self.by: set[CodeType] = set()

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen to `print` within it."""
        upstream = builtins.print

        def listening(*values: Any, **options: Any) -> None:
            self._note(" ".join(map(str, values)))
            upstream(*values, **options)

        with replace_symbol("builtins:print", listening):
            yield

    def _note(self, text: str) -> None:
        caller = sys._getframe(2)
        above = caller.f_back  # Megatron prints through `print_rank_0`
        self.text, self.by = text, {caller.f_code} | ({above.f_code} if above else set())


class Exit:
    """Where a `SystemExit` was raised.

    Args:
        error: with its traceback.
        words: what was printed before.
    """

    def __init__(self, error: SystemExit, words: LastWords) -> None:
        self.code = error.code
        self.code_object: CodeType | None = None
        self.line = 0
        for self.code_object, self.line in _frames(error.__traceback__):
            pass  # the innermost counts
        self.said = words.text if self.code_object in words.by else ""

    @property
    def place(self) -> tuple[str, str]:
        """File name and function."""
        if self.code_object is None:
            return "an unknown place", ""
        return Path(self.code_object.co_filename).name, self.code_object.co_name

    def is_help(self) -> bool:
        """Whether argparse has printed its help, and that was all."""
        return self.place == HELP and not self.code

    def meaning(self) -> tuple[Outcome, str] | None:
        """Outcome and details of an exit that was asked for; None for a failure."""
        return None if self.code else ASKED_FOR.get(self.place)

    def describe(self) -> str:
        """One line: what kind of exit, where, and what was said."""
        if isinstance(self.code, str):
            return f"SystemExit: {' '.join(self.code.split())}"
        name, function = self.place
        what = f"SystemExit: {self.code}" if self.code else "SystemExit without a code, which is no end of training"
        said = f": {' '.join(self.said.split())}" if self.said else ""
        return f"{what}, at {name}:{self.line} ({function}){said}"


def _frames(trace: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    """Code and line, outermost first; `exit()` of Python's own is not the place that called it."""
    while trace is not None:
        code = trace.tb_frame.f_code
        if Path(code.co_filename).name not in ("_sitebuiltins.py", "<frozen _sitebuiltins>"):
            yield code, trace.tb_lineno
        trace = trace.tb_next
