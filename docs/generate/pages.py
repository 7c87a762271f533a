"""Texts that lie elsewhere in the repository and belong to the site too."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from generate import ROOT

STUDIES = ROOT / "benchmarks" / "studies"
"""A folder for each published study."""
PAGES = {"docker/README.md": "operations/container.md", "slurm/README.md": "operations/slurm-scripts.md", "CHANGELOG.md": "contributing/changelog.md",
         "CONTRIBUTING.md": "contributing/index.md"}  # fmt: skip
LINK = re.compile(r"\]\(([^)#:\s]+\.(?:md|png|html))(#[^)]*)?\)")


def with_links(source: Path, target: str) -> str:
    """A file of the repository as a page of the site at `target`: links between files become links between pages."""

    def link(found: re.Match[str]) -> str:
        name = str((source.parent / found[1]).resolve().relative_to(ROOT))
        page = PAGES.get(name, name.removeprefix("docs/"))
        return f"]({'../' * target.count('/')}{page}{found[2] or ''})"

    return LINK.sub(link, source.read_text())


def contributing_page() -> str:
    """CONTRIBUTING.md."""
    return with_links(ROOT / "CONTRIBUTING.md", "contributing/index.md")


def changelog_page() -> str:
    """CHANGELOG.md."""
    return with_links(ROOT / "CHANGELOG.md", "contributing/changelog.md")


def container_page() -> str:
    """docker/README.md."""
    return with_links(ROOT / "docker" / "README.md", "operations/container.md")


def slurm_page() -> str:
    """slurm/README.md."""
    return with_links(ROOT / "slurm" / "README.md", "operations/slurm-scripts.md")


def study_report_pages() -> dict[str, Callable[[], str]]:
    """The published studies' reports, and how their settings were found, by their pages; figures lie beside them."""
    pages = sorted(path for name in ("report", "search") for path in STUDIES.glob(f"*/{name}.md"))
    return {f"results/{path.parent.name}/{path.name}": partial(Path.read_text, path) for path in pages}


def study_figures() -> dict[str, Path]:
    """{place on the site: file} of all figures of studies, with or without a report."""
    return {f"results/{path.parent.name}/{path.name}": path for path in sorted(STUDIES.glob("*/*.png"))}
