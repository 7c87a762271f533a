"""How many examples a property test draws: a tenth in `make test`, all of them in `make test-slow`."""

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest

everything = False
"""Set by `conftest.py` before any test is imported, where the marker `thorough` is asked for."""


def examples(count: int) -> Callable[[Any], Any]:
    """Decorator: `count` examples when run thoroughly, however long one of them takes."""
    drawn = hypothesis.settings(max_examples=count if everything else count // 10, deadline=None)

    def decorate(test: Any) -> Any:
        return pytest.mark.thorough(drawn(test))

    return decorate
