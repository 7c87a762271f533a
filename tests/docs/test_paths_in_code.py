"""Pages that the package, the examples and the scripts point their readers to are there."""

import re

import pytest

from tests.docs.commands import ROOT
from tests.docs.generated import GENERATED

SOURCES = [
    path
    for folder in ("megatron_compete", "examples", "tools", "slurm", "docker", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".sh", ".yaml", ".sbatch", ".example", ".md") and "benchmarks/studies" not in str(path)
]
MENTIONED = {
    (str(path.relative_to(ROOT)), page)
    for path in SOURCES
    for page in re.findall(r"\bdocs/([\w./-]+\.md)", path.read_text())
}


@pytest.mark.parametrize(("source", "page"), sorted(MENTIONED))
def test_a_page_that_is_named_is_there(source: str, page: str) -> None:
    assert (ROOT / "docs" / page).exists() or page in GENERATED, f"{source} names docs/{page}"


def test_pages_are_named() -> None:
    assert "examples/routers/xmoe.yaml" in {source for source, _ in MENTIONED}
