"""What Megatron refuses, as one of our errors."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from megatron_compete.common.errors import CompeteError


@contextmanager
def megatrons_words() -> Iterator[None]:
    """Within it, what Megatron refuses becomes a `CompeteError` that says so, in Megatron's own words."""
    try:
        yield
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, CompeteError):
            raise
        said = " ".join(str(error).split()) or _where(error)  # some of its assertions say nothing
        raise CompeteError(f"Megatron refuses these arguments: {said}") from error


def _where(error: BaseException) -> str:
    """The line of Megatron's source that refused, and where it stands."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.line} ({last.filename}:{last.lineno})"
