"""The comparison of routers: every router is there, and its weights are what its formula promises."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import Case
from megatron_compete.moe.baselines import BASELINES
from tests.ranks import run_rank

SMALL = Case(tokens=48, hidden=16, ffn=8, experts=8, topk=3, ep=1)


def measured() -> dict[str, dict[str, Any]]:
    from megatron.core import parallel_state

    from benchmarks.routers import measure

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    return measure(SMALL, steps=3, repeats=2, dtype=torch.float32)


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Any]]:
    return run_rank(measured)


def test_every_router_is_measured(results: dict[str, dict[str, Any]]) -> None:
    assert set(BASELINES) - set(results) == {"hash"}  # made-up tokens have no ids
    for result in results.values():
        assert result["time_ratio"] > 0 and len(result["ms"]) == 2
    assert results["topk"]["time_ratio"] == 1.0
    assert results["topk"]["router_parameters"] == 8 * 16
    assert results["xmoe"]["router_parameters"] == 4 * 16 + 8 * 4


def test_weights_are_those_of_the_formulas(results: dict[str, dict[str, Any]]) -> None:
    of_k = {name: (result["weights"] > 0).sum(dim=1) for name, result in results.items()}
    for name in ("topk", "sigmoid", "xmoe", "cosine", "response", "utility"):
        assert (of_k[name] == SMALL.topk).all(), name
        torch.testing.assert_close(results[name]["weights"].sum(dim=1), torch.ones(SMALL.tokens))
    for name in ("shared-v2", "shared-v3"):
        assert (of_k[name] == SMALL.topk - 1).all() and results[name]["weights"].shape == (SMALL.tokens, 7)
    assert (results["shared-v2"]["weights"].sum(dim=1) < 1.0).all()
    assert of_k["remoe"].unique().numel() > 1


def test_table_and_figure_have_them_all(results: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    from benchmarks.router_figure import draw_routers
    from benchmarks.routers import markdown

    table = markdown(results, SMALL, steps=3, repeats=2)
    assert all(f"| {result['label']}" in table for result in results.values())
    draw_routers(results, SMALL, tmp_path / "routers.png")
    assert (tmp_path / "routers.png").stat().st_size > 10_000
