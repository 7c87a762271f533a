"""Links between Markdown files lead to files and headings that are there, also where the site is not built."""

import re
from pathlib import Path

import pytest

from tests.docs.commands import ROOT
from tests.docs.generated import GENERATED

FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "slurm" / "README.md",
         ROOT / "docker" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]  # fmt: skip
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|^    .*?$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(CODE.sub("", path.read_text())):
        if re.match(r"https?://|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        page = str(target.relative_to(ROOT / "docs")) if target.is_relative_to(ROOT / "docs") else ""
        assert target.exists() or page in GENERATED, f"{link} leads nowhere"
        if anchor and target.suffix == ".md" and target.exists():
            assert anchor in anchors_of(target), f"{link}: {target.name} has no such heading"


def anchors_of(path: Path) -> set[str]:
    """Anchors of a file's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
