"""Declared comparisons: corrections, verdicts and power, against values worked out by hand."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.study.comparisons import (
    costs_table,
    declared_of,
    declared_table,
    exploratory_of,
    write_csv,
)
from megatron_compete.study.config import Axis, Study
from megatron_compete.study.headroom import checks_of
from megatron_compete.study.table import rows_of
from tests.study.fabricated import ending, run_log, study_of

BASE = [1.0, 2.0, 3.0]
LOWER = [0.89, 1.90, 2.88]
"""Differences -.11, -.10, -.12: mean -.11, deviation .01; t of 2 degrees of freedom is 4.302653, at 97.5 % 6.205347."""
A_LITTLE = [0.971, 1.97, 2.969]
"""-.029, -.03, -.031: mean -.03, deviation .001."""
NEARLY = [0.97, 1.98, 2.96]
"""-.03, -.02, -.04: mean -.03, deviation .01: [-.0548, -.0052] alone, [-.0658, +.0058] of two."""


def study(tmp_path: Path, *comparisons: dict[str, str], **changes: Any) -> Study:
    return study_of(tmp_path, comparisons=list(comparisons), **changes)


def test_intervals_are_simultaneous_and_p_is_holms(tmp_path: Path) -> None:
    both = study(tmp_path, {"variant": "paper"}, {"variant": "slow"})
    better, nearly = declared_of(both, ending(topk=BASE, paper=LOWER, slow=NEARLY))
    assert (better.verdict, better.other, better.axis, better.read_at) == ("better", "topk", "steps", "ends")
    assert better.confidence == pytest.approx(0.975)
    half = 6.205347 * 0.01 / 3**0.5
    assert better.interval == pytest.approx((-0.11 - half, -0.11 + half), rel=1e-5)
    assert nearly.difference is not None and nearly.difference.half_width == pytest.approx(0.024841, abs=1e-6)
    assert nearly.interval is not None and nearly.interval[1] > 0 and nearly.verdict == "no difference shown"
    # Two degrees of freedom: p = 1 - t / sqrt(t^2 + 2), of which Holm doubles the smaller.
    t = {"better": 0.11 / 0.01 * 3**0.5, "nearly": 0.03 / 0.01 * 3**0.5}
    alone = {name: 1 - value / (value**2 + 2) ** 0.5 for name, value in t.items()}
    assert better.holm_p == pytest.approx(2 * alone["better"], rel=1e-6)
    assert nearly.holm_p == pytest.approx(alone["nearly"], rel=1e-6) and alone["nearly"] < 0.05


def test_one_comparison_is_not_corrected(tmp_path: Path) -> None:
    (one,) = declared_of(study(tmp_path, {"variant": "slow"}), ending(topk=BASE, slow=NEARLY))
    assert one.verdict == "better" and one.interval == pytest.approx((-0.054841, -0.005159), abs=1e-6)


def test_what_is_not_finished_has_no_verdict_and_still_counts(tmp_path: Path) -> None:
    three = study(
        tmp_path, {"variant": "paper"}, {"variant": "slow"}, {"variant": "slow", "against": "paper", "at": "flops"}
    )
    logs = ending(topk=BASE, paper=LOWER[:2], slow=LOWER)
    part, whole, without = declared_of(three, logs)
    assert (part.verdict, part.pairs, part.planned, part.holm_p) == ("not finished", 2, 3, None)
    assert part.difference is not None and part.difference.mean == pytest.approx(-0.105)
    assert without.verdict == "not in the logs"
    t = 0.11 / 0.01 * 3**0.5
    assert whole.verdict == "better" and whole.holm_p == pytest.approx(3 * (1 - t / (t**2 + 2) ** 0.5), rel=1e-6)
    # One degree of freedom is Cauchy's: t = cot(pi / 120) = 38.1885 at 1 - .05 / 3.
    table = declared_table(three, [part, whole, without]).splitlines()
    assert (
        table[2]
        == "| paper against top-K | steps | 2 of 3 | -0.1050 [-0.1685, -0.0415] | [-0.2959, +0.0859] |  | not finished |"
    )
    assert table[4] == "| slow against paper | FLOPs | 0 of 3 |  |  |  | not in the logs |"
    (none,) = declared_of(study(tmp_path, {"variant": "slow"}), ending(topk=BASE))
    assert none.verdict == "not finished" and none.interval is None


@pytest.mark.parametrize(
    ("losses", "verdict", "words"),
    [
        (LOWER, "better", "better"),
        (A_LITTLE, "better", "better, by less than 0.05"),
        ([1.11, 2.10, 3.12], "worse", "worse"),
        ([1.01, 1.99, 3.0], "as good as", "as good, within 0.05"),
        ([1.1, 1.9, 3.0], "no difference shown", "no difference shown"),
        ([1.1, math.nan, 3.0], "diverged", "diverged"),
    ],
)
def test_verdicts(tmp_path: Path, losses: list[float], verdict: str, words: str) -> None:
    one = study(tmp_path, {"variant": "paper"}, **{"smallest-difference": 0.05})
    (found,) = declared_of(one, ending(topk=BASE, paper=losses))
    assert found.verdict == verdict
    assert declared_table(one, [found]).splitlines()[2].endswith(f"| {words} |")


def test_one_seed(tmp_path: Path) -> None:
    one = study(tmp_path, {"variant": "paper"}, seeds=[1])
    (found,) = declared_of(one, ending(topk=[1.0], paper=[0.9]))
    assert (found.verdict, found.holm_p, found.needed) == ("one pair", None, None)
    assert "| 1 | -0.1000 (one pair) |  |  | one pair |" in declared_table(one, [found])


def test_seeds_that_a_difference_needs(tmp_path: Path) -> None:
    """A deviation of .01: half of it takes 34 pairs, .8 of it 15 (G*Power 3.1); three pairs are not enough."""
    for smallest, needed in ((0.005, 34), (0.008, 15)):
        one = study(tmp_path, {"variant": "paper"}, **{"smallest-difference": smallest})
        (found,) = declared_of(one, ending(topk=BASE, paper=LOWER))
        assert found.needed == needed and not found.is_enough
        assert (
            costs_table(one, [found])
            .splitlines()[2]
            .endswith(f"| both ends | 1.00x | 1.00x | 0.0100 | {needed} | no |")
        )
    one = study(tmp_path, {"variant": "paper"}, **{"smallest-difference": 0.1})
    (found,) = declared_of(one, ending(topk=BASE, paper=LOWER))
    assert found.needed == 3 and found.is_enough
    (tiny,) = declared_of(
        study(tmp_path, {"variant": "paper"}, **{"smallest-difference": 1e-5}), ending(topk=BASE, paper=LOWER)
    )
    assert tiny.needed is None and "| more than 1000 | no |" in costs_table(one, [tiny])


def test_axes_and_what_was_used(tmp_path: Path) -> None:
    """`slow` takes twice the operations and is read at its end, where top-K has had all 40 of its 20 steps' worth."""
    losses = {0: 4.0, 20: 3.0, 40: 2.0}
    logs = {
        "topk": [run_log("topk", seed, losses, 1.0, 1.0) for seed in (1, 2, 3)],
        "slow": [run_log("slow", seed, {0: 4.0, 20: 2.9, 40: 1.8 + 0.01 * seed}, 1.5, 2.0) for seed in (1, 2, 3)],
    }
    four = study(tmp_path, *({"variant": "slow", "at": axis} for axis in ("steps", "flops", "seconds", "data")))
    steps, flops, seconds, data = declared_of(four, logs)
    means = [one.difference.mean if one.difference else None for one in (steps, flops, seconds, data)]
    # at 40 seconds `slow` is at step 26.67, a third of the way from 2.9 to 1.82
    assert means == pytest.approx([-0.18, 0.9, 2.9 - (2.9 - 1.82) / 3 - 2.0, -0.18])
    assert flops.read_at == "other's end" and data.read_at == "best probes" and steps.read_at == "ends"
    assert flops.ratios == pytest.approx({"steps": 0.5, "flops": 1.0, "seconds": 0.75})
    assert data.ratios == pytest.approx({"steps": 1.0, "flops": 2.0, "seconds": 1.5})
    assert "| end of top-K | 0.50x | 1.00x | 0.75x |" in costs_table(four, [flops])
    (turned,) = declared_of(study(tmp_path, {"variant": "topk", "against": "slow", "at": "flops"}), logs)
    assert turned.read_at == "variant's end" and turned.difference is not None
    assert turned.difference.mean == pytest.approx(-0.9)
    write_csv([flops], tmp_path / "c.csv")
    with (tmp_path / "c.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["variant"], row["against"], row["at"], row["steps-ratio"]) == ("slow", "topk", "flops", "0.5")
    assert (
        float(row["difference"]) == pytest.approx(0.9) and row["confidence"] == "0.9875" and row["seeds-needed"] == ""
    )


def test_everything_else_is_counted_as_exploratory(tmp_path: Path) -> None:
    """Two variants on two axes are four intervals: one is declared, one of the headroom check, two are left."""
    logs = ending(topk=BASE, paper=LOWER, slow=NEARLY)
    axes: list[Axis] = ["steps", "seconds"]
    plain = study(tmp_path)
    found = exploratory_of(rows_of(plain, logs), axes, [], [])
    assert (found.count, found.clear, found.expected) == (4, 4, pytest.approx(0.2))
    one = study(tmp_path, {"variant": "topk", "against": "paper"}, headroom={"hash": "slow"})
    found = exploratory_of(rows_of(one, logs), axes, declared_of(one, logs), checks_of(one, logs))
    assert (found.count, found.expected) == (2, pytest.approx(0.1))
    diverged = ending(topk=BASE, paper=[1.0, math.nan, 2.0], slow=[1.01, 1.99, 3.0])
    found = exploratory_of(rows_of(plain, diverged), axes, [], [])
    assert (found.count, found.clear) == (2, 0)
