"""Pages of audits as files: what is in them, and what must not be."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_compete.audit.page import sections, write_audit_page, write_comparison_page
from megatron_compete.audit.results import (
    Audit,
    Competition,
    Interval,
    LayerAudit,
    Regret,
    Use,
    read_audit,
    write_audit,
)
from megatron_compete.common.errors import CompeteError
from tests.audit.audits import audit_of, layer_audit, matrices, small_audit

EVIL = "</script><script>document.title='run'</script><img src=x onerror=document.title='run'>$$x$$"


def large_layer(layer: int, experts: int = 512) -> LayerAudit:
    random = np.random.default_rng(layer)
    load, other = (draw / draw.sum() for draw in random.gamma(1.0, size=(2, experts)))
    use = Use(load.tolist(), [load.tolist(), other.tolist()], [], 0.9, 0.8, 0.1, 0.2, 0.6, [(0, 1, 0.9)] * 5)
    small = layer_audit(layer)
    return dataclasses.replace(small, experts=experts, use=use, competition=Competition(512, 0.4, 0.5, load.tolist(), other.tolist()))  # fmt: skip


def broken_layer(layer: int) -> LayerAudit:
    """Nothing in it is finite."""
    nan = math.nan
    use = Use([nan] * 4, [[nan] * 4] * 2, [], nan, math.inf, -math.inf, nan, nan, [(0, 1, nan)])
    small = layer_audit(layer)
    return dataclasses.replace(
        small, use=use, competition=Competition(0, nan, nan, [nan] * 4, [math.inf] * 4),
        regret=Regret(0, {"utility": Interval(nan, -math.inf, math.inf), "random": Interval(math.inf, nan, nan)}),
        geometry=dataclasses.replace(small.geometry, output_similarity=nan, router_rank=math.inf, closest_pairs=[(0, 1, nan)]),
        against=dataclasses.replace(small.against, same_choice=nan, router_drift=math.inf),
    )  # fmt: skip


def written(audit: Audit, folder: Path, found: dict[str, torch.Tensor] | None = None) -> str:
    write_audit_page(audit, matrices(2) if found is None else found, folder / "audit.html")
    return (folder / "audit.html").read_text()


def test_all_sections_are_on_the_page(tmp_path: Path) -> None:
    html = written(small_audit(2), tmp_path)
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [section.title for section in sections(small_audit(2), {})] and len(titles) == 12
    assert "<title>Audit of runs/small/hf</title>" in html and "2 of 8 experts are dead" in html


def test_texts_of_checkpoint_and_domains_are_escaped(tmp_path: Path) -> None:
    html = written(small_audit(2, checkpoint=EVIL, architecture=EVIL, domains=[EVIL, "b"], against=EVIL, cost={EVIL: 1.0}), tmp_path)  # fmt: skip
    write_comparison_page([(EVIL, small_audit()), (EVIL, small_audit())], tmp_path / "compare.html")
    for page in (html, (tmp_path / "compare.html").read_text()):
        assert "<img src=x" not in page and "<script>document" not in page
        assert page.count("<script") == 3, "data, library and the page's own"


@pytest.mark.parametrize("layers", [[broken_layer(0)], [layer_audit(0), broken_layer(1)]])
def test_numbers_that_are_not_finite_break_nothing(layers: list[LayerAudit], tmp_path: Path) -> None:
    nan = Interval(math.nan, math.nan, math.nan)
    audit = audit_of(loss=nan, loss_by_domain=[math.nan, math.inf], layers=layers)
    html = written(audit, tmp_path, {"coactivation.0": torch.full((4, 4), math.nan), "output_similarity.0": torch.full((4, 4), math.inf)})  # fmt: skip
    assert "The loss is not finite." in html
    data = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)
    assert data
    json.loads(data[1], parse_constant=lambda name: pytest.fail(f"{name} is no JSON for a browser"))
    write_comparison_page([("a", audit), ("b", small_audit())], tmp_path / "compare.html")


def test_an_audit_that_was_read_again_gives_the_same_page(tmp_path: Path) -> None:
    write_audit(small_audit(2), matrices(2), tmp_path)
    found = re.compile(r"<main.*?<script", re.DOTALL)
    first, second = (found.search(written(audit, tmp_path)) for audit in (small_audit(2), read_audit(tmp_path)))
    assert first and second and first[0] == second[0]


@pytest.mark.parametrize("layers", [0, 1])
def test_parts_that_were_not_measured_are_lines(layers: int, tmp_path: Path) -> None:
    bare = [layer_audit(layer, competition=None, regret=None, geometry=None, against=None) for layer in range(layers)]
    html = written(audit_of(layers=bare, against=None, cost={}), tmp_path, {})
    assert html.count("not part of this audit") == 5


def test_200_layers_of_512_experts_are_under_5_megabytes(tmp_path: Path) -> None:
    audit = audit_of(layers=[large_layer(layer) for layer in range(200)])
    pairs = torch.rand(512, 512)
    html = written(audit, tmp_path, {f"{name}.{layer}": pairs for name in ("coactivation", "output_similarity") for layer in range(200)})  # fmt: skip
    assert 1_000_000 < len(html) < 5_000_000


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompeteError, match=r"file/audit.html cannot be written"):
        write_audit_page(small_audit(1), {}, tmp_path / "file" / "audit.html")
