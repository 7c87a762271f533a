"""Flags out of a dataclass."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from megatron_compete.common.command_line import (
    Command,
    add_options,
    check_options,
    flag_of,
    option,
    take_options,
)
from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class Cut:
    inputs: tuple[Path, ...]
    """What to cut; 100% of it."""
    output: str = option(metavar="PREFIX", help="where to")
    order: Literal["drawn", "given"] = "drawn"
    """How documents are chosen.

    In two paragraphs."""
    width: int | None = None
    """A doc that names its default: none."""
    share: float = 0.5
    """Share of `them`."""
    whole: bool = True
    """Keep words whole."""
    force: bool = option(False, "--force", "--overwrite", help="replace")
    names: tuple[str, ...] = option((), "--name", repeats=True)
    size: int = option(5, "--max-size", parse=lambda text: int(text) * 10, shown="0.5")
    secret: int = option(7, hidden=True)

    def __post_init__(self) -> None:
        check_options(self)


def parse(*words: str) -> Cut:
    parser = argparse.ArgumentParser()
    add_options(parser, Cut)
    given = vars(parser.parse_args(["--inputs", "a", "b", "--output", "c", *words]))
    cut = take_options(Cut, given)
    assert given == {}
    return cut


def test_what_is_not_given_is_the_fields_default() -> None:
    assert parse() == Cut((Path("a"), Path("b")), "c")


def test_values() -> None:
    words = "--order given --width 3 --share 0.25 --no-whole --overwrite --name x --name y --max-size 6"
    assert parse(*words.split()) == Cut((Path("a"), Path("b")), "c", "given", 3, 0.25, False, True, ("x", "y"), 60)
    assert parse("--whole").whole


def test_what_a_command_sets_itself_wins() -> None:
    assert take_options(Cut, {"inputs": ["a"], "output": "b"}, output="c", secret=1).output == "c"


def test_help_is_the_doc_with_the_default() -> None:
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=200))
    add_options(parser, Cut)
    said = parser.format_help()
    for text in (
        "what to cut; 100% of it\n",
        "where to\n",
        "how documents are chosen. In two paragraphs (default: drawn)",
        "a doc that names its default: none\n",
        "share of them (default: 0.5)",
        "--whole, --no-whole",
        "(default: 0.5)\n",
    ):
        assert text in said, text
    assert "secret" not in said


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("order", "drwan", "--order drwan is out of range: choose from drawn, given"),
        ("width", 1.5, "--width 1.5 is out of range: give a whole number"),
        ("share", float("nan"), "--share nan is out of range"),
        ("force", "yes", "--force yes is out of range: give true or false"),
        ("size", "big", "--max-size big is out of range"),
    ],
)
def test_python_callers_get_the_same_error(field: str, value: Any, message: str) -> None:
    with pytest.raises(CompeteError, match=message):
        Cut((Path("a"),), "b", **{field: value})


def test_a_command_without_what_is_required() -> None:
    seen: list[Cut] = []
    command = Command("cut", "Cut.", "--inputs a --output b", seen.append, options=Cut)
    with pytest.raises(CompeteError, match="required: --inputs, --output: see megatron-compete cut --help"):
        command([])
    with pytest.raises(CompeteError, match=r"cut takes no argument --ouput .did you mean --output.."):
        command(["--inputs", "a", "--ouput", "b"])
    command(["--inputs", "a", "--outp", "b"])
    assert seen == [Cut((Path("a"),), "b")] and flag_of(Cut, "size") == "--max-size"


def test_overrides_are_kept_for_a_recipe() -> None:
    command = Command("cut", "Cut.", "", print, options=Cut, takes_overrides=True)
    assert command.parse(["--inputs", "a", "--output", "b", "--lr", "0.5"]).overrides == ["--lr", "0.5"]
