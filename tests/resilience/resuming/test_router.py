"""A checkpoint of one router is not read by another."""

from argparse import Namespace
from typing import Any

import pytest

from megatron_compete.resilience.resuming.router import router_changes

OLD: dict[str, Any] = {}
"""Another trainer's arguments, or those of an older version."""
TOPK, COMPETE, XMOE, COSINE = ({"router": name} for name in ("topk", "compete", "xmoe", "cosine"))


@pytest.mark.parametrize(("saved", "now"), [(OLD, XMOE), (TOPK, COSINE), (COMPETE, XMOE), (XMOE, TOPK), (COSINE, XMOE)])
def test_another_router_is_refused(saved: dict[str, Any], now: dict[str, Any]) -> None:
    (change,) = router_changes(Namespace(**saved), Namespace(**now))
    assert change.startswith(f"--router {now['router']} cannot go on from a checkpoint of --router")


@pytest.mark.parametrize(
    ("saved", "now"), [(OLD, TOPK), (OLD, COMPETE), (TOPK, COMPETE), (COMPETE, TOPK), (XMOE, XMOE)]
)
def test_the_same_router_goes_on_and_competition_from_topk(saved: dict[str, Any], now: dict[str, Any]) -> None:
    assert not [*router_changes(Namespace(**saved), Namespace(**now))]


def test_another_table_is_refused() -> None:
    saved, now = (Namespace(router="hash", seed=seed) for seed in (1, 2))
    assert not [*router_changes(saved, saved)]
    (change,) = router_changes(saved, now)
    assert change.startswith("--seed 2 is 1 in the checkpoint, and --router hash draws its table from it")
    assert not [*router_changes(Namespace(router="frozen", seed=1), Namespace(router="frozen", seed=2))]


def test_another_temperature_is_refused() -> None:
    saved = Namespace(**XMOE, router_temperature=0.2)
    assert not [*router_changes(saved, saved)]
    (change,) = router_changes(saved, Namespace(**XMOE))
    assert change.startswith("--router-temperature 0.3 is 0.2 in the checkpoint")
