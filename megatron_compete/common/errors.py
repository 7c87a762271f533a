"""The one kind of error that is the user's to fix, and how a command line reports it."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

USAGE_EXIT_CODE = 2
"""Exit code of every command of this project when its input is at fault (argparse uses the same)."""


class CompeteError(ValueError):
    """Input that cannot be used: names the file or flag, the value, and a way out, in one line."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean NAME?)` for the end of an error's clause, empty where nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def exit_with_error(error: Exception) -> NoReturn:
    """Print `error` as one line on stderr and leave with `USAGE_EXIT_CODE`."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    raise SystemExit(USAGE_EXIT_CODE)


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main function; a `CompeteError` becomes one line and exit code 2."""
    try:
        main()
    except CompeteError as error:
        exit_with_error(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
