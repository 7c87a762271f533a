"""An audit's pages as a browser shows them: `make test-pages`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_compete.audit.page import write_audit_page, write_comparison_page
from tests.audit.audits import audit_of, layer_audit, matrices, small_audit
from tests.audit.test_page import EVIL, broken_layer, large_layer
from tests.report.test_pages import Opened, browser  # noqa: F401  # a fixture

pytestmark = pytest.mark.pages


def write_small(path: Path) -> None:
    write_audit_page(small_audit(3, checkpoint=EVIL, domains=[EVIL, "b"]), matrices(3), path)


def write_broken(path: Path) -> None:
    write_audit_page(audit_of(layers=[layer_audit(0), broken_layer(1)], against=None), {}, path)


def write_large(path: Path) -> None:
    audit = audit_of(layers=[large_layer(layer) for layer in range(200)])
    pairs = {f"{name}.{layer}": torch.rand(512, 512) for name in ("coactivation", "output_similarity") for layer in range(8)}  # fmt: skip
    write_audit_page(audit, pairs, path)


def write_comparison(path: Path) -> None:
    write_comparison_page([(EVIL, small_audit(3)), ("b", dataclasses.replace(small_audit(5), text="1" * 64))], path)


@pytest.mark.parametrize("write", [write_small, write_broken, write_large, write_comparison])
def test_a_page_is_drawn_without_a_complaint(browser: Any, write: Callable[[Path], None], tmp_path: Path) -> None:  # noqa: F811
    write(tmp_path / "page.html")
    opened = Opened(browser, f"file://{tmp_path / 'page.html'}")
    assert opened.complaints == [] and len(opened.requests) == 1, "the file itself"
    assert len(opened.sizes()) >= 5 and all(width > 200 and height > 100 for width, height in opened.sizes())
    assert opened.tab.title() != "run" and opened.tab.locator("img[src=x]").count() == 0
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= 1280
