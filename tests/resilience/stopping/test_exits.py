"""What an exit of Megatron's means is told from where it was taken and what was printed before."""

import builtins
from pathlib import Path

import pytest
from megatron.training import checkpointing

from megatron_compete.resilience.stopping.exits import Exit, LastWords


def left(tracker: Path) -> Exit:
    """Megatron's exit over a tracker that says nothing."""
    tracker.touch()
    words = LastWords()
    with words.heard(), pytest.raises(SystemExit) as caught:
        checkpointing.read_metadata(str(tracker))
    return Exit(caught.value, words)


def test_an_exit_is_described_by_its_place_and_what_was_printed(tmp_path: Path) -> None:
    found = left(tmp_path / "tracker")
    assert found.place == ("checkpointing.py", "read_metadata") and found.meaning() is None
    assert found.describe().endswith(f"(read_metadata): ERROR: Invalid metadata file {tmp_path}/tracker. Exiting")


def test_upstream_still_says_why_by_print_alone(tmp_path: Path) -> None:
    assert left(tmp_path / "tracker").code is None


def test_print_is_put_back() -> None:
    before = builtins.print
    with LastWords().heard():
        assert builtins.print is not before
    assert builtins.print is before


def test_another_functions_last_words_are_no_reason() -> None:
    words = LastWords()
    with words.heard():
        print("training ...")
    with pytest.raises(SystemExit) as caught:
        _leave()
    assert Exit(caught.value, words).said == ""


def _leave() -> None:
    raise SystemExit
