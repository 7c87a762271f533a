"""The one rule by which answers about pictures of digits are right."""

import subprocess
import sys

import pytest

from megatron_compete.data.digit_answers import exact_match, is_right


@pytest.mark.parametrize("given", ["seven", " Seven\n", "seven.", "SEVEN ."])
def test_case_spaces_and_a_full_stop_do_not_matter(given: str) -> None:
    assert is_right(given, "seven")


@pytest.mark.parametrize("given", ["", "seven seven", "the seven", "six", "seve", "seven!"])
def test_anything_else_is_wrong(given: str) -> None:
    assert not is_right(given, "seven")


def test_words_of_a_caption_count_in_their_order() -> None:
    assert is_right("red  one blue two", "red one blue two")
    assert not is_right("blue two red one", "red one blue two")


def test_shares_are_by_kind() -> None:
    answers = [("digit", "one", "one"), ("digit", "two", "one"), ("colour", "red", "red")]
    assert exact_match(answers) == {"digit": 0.5, "colour": 1.0, "all": pytest.approx(2 / 3)}
    assert exact_match([]) == {}


def test_it_needs_the_standard_library_alone() -> None:
    code = "import sys, megatron_compete.data.digit_answers; print({'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
