"""What Megatron refuses, as one line."""

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.training.megatrons_words import megatrons_words


@pytest.mark.parametrize("error", [AssertionError, ValueError, RuntimeError, TypeError])
def test_megatrons_words_on_one_line(error: type[Exception]) -> None:
    with (
        pytest.raises(CompeteError, match=r"^Megatron refuses these arguments: no such layout$"),
        megatrons_words(),
    ):
        raise error("no such\n    layout")


def test_an_assertion_without_words_is_told_by_its_source() -> None:
    with (
        pytest.raises(CompeteError, match=r"arguments: raise AssertionError .*test_megatrons_words.py:\d+\)"),
        megatrons_words(),
    ):
        raise AssertionError


def test_our_refusals_stay_ours() -> None:
    with pytest.raises(CompeteError, match=r"^--flag 3: give 4$"), megatrons_words():
        raise CompeteError("--flag 3: give 4")
