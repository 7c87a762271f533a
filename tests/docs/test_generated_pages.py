"""Pages that are made from the code say what the code says."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from megatron_compete.cluster.settings import KEYS, VARIABLES
from megatron_compete.config import CompeteConfig, flag_of
from tests.docs.generated import commands, errors, mathml, pages, tables
from tests.ranks import run_rank
from tests.test_rooms import ROOMS


def test_every_verb_and_its_flags_are_there() -> None:
    page = commands.commands_page()
    assert "\n## preprocess\n" in page and "| `--append-eod` |" in page
    assert "| `--recipe` |" in page and "[Trainer flags](trainer-flags.md)" in page


def trainer_flags() -> str:
    """In a process of its own, which imports Megatron."""
    return commands.trainer_flags_page()


def test_every_setting_of_competition_is_a_row() -> None:
    page = run_rank(trainer_flags)
    for field in fields(CompeteConfig):
        assert f"| `{flag_of(field.name)}` |" in page


def test_a_flag_shows_choices_and_default() -> None:
    parser = argparse.ArgumentParser()
    action = parser.add_argument("--kind", choices=("a", "b"), default="a", help="which | kind (default: a)")
    assert commands.flag_row(action) == ["`--kind`", "`a` `b`", "`a`", "which | kind"]
    assert commands.shown(0) == "`0`" and commands.shown(False) == ""
    assert tables.table(["x"], [["a | b"]]).splitlines()[-1] == "| a \\| b |"


def test_messages_of_errors_are_read_from_the_code(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        'raise CompeteError(f"--rate {self.rate} is {"high":>5}: " + "lower it")\nraise CompeteError(str(error))\n'
    )
    assert list(errors.messages_of(module)) == ["--rate {rate} is {...}: lower it"]
    page = errors.errors_page()
    assert "`megatron_compete/cluster/settings.py`" in page and "no such file, copy slurm/cluster.env.example" in page


@pytest.mark.parametrize(
    "page",
    [tables.metrics_page, tables.exit_codes_page, tables.run_folder_page, tables.upstream_page, tables.rooms_page],
)
def test_tables_of_declarations_are_complete(page: object) -> None:
    assert callable(page) and "| --- |" in page()


def test_rooms_are_those_that_the_import_graph_is_held_to() -> None:
    assert re.findall(r"^\| \d+ \| `(\w+)` \|", tables.rooms_page(), re.MULTILINE) == ROOMS


def test_every_setting_of_a_cluster_is_explained() -> None:
    assert set(tables.explained()) == set(KEYS) - {VARIABLES}
    assert all(tables.explained().values())


def test_links_of_files_become_links_of_pages() -> None:
    assert "](../operations/container.md)" in pages.slurm_page()
    assert "](../concepts/equations.md)" in pages.contributing_page()


def test_equations_become_mathml() -> None:
    html = mathml.with_mathml(
        '<p><span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[\\frac{a}{b}\\]</div>'
    )
    assert html.count("<math") == 2 and "arithmatex" not in html and 'display="block"' in html
