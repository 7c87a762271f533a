"""What the check says of settings whose answer is known."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.study.config import Study
from megatron_compete.study.headroom import Check, checks_of, first_line, headroom_table, write_csv
from tests.study.fabricated import ending, study_of

VARIANTS: dict[str, Any] = {name: {} for name in ("topk", "hash", "frozen", "every-step", "truth")}
ARMS = {"hash": "hash", "frozen": "frozen", "dense-gradient": "every-step"}

BASE = [1.0, 2.0, 3.0]
WORSE = [1.11, 2.10, 3.12]
"""Differences .11, .10, .12: .11 +- 4.302653 * .01 / sqrt(3), the interval [.0852, .1348]."""
BETTER = [0.89, 1.90, 2.88]
EQUAL = [1.01, 1.99, 3.0]
"""Differences .01, -.01, 0: [-.0248, +.0248]."""
MUCH_BETTER = [0.5, 1.51, 2.52]


def study(tmp_path: Path, **changes: Any) -> Study:
    return study_of(tmp_path, **{"variants": VARIANTS, "headroom": ARMS} | changes)


def check(tmp_path: Path, changes: dict[str, Any] | None = None, **losses: list[float]) -> Check:
    (found,) = checks_of(study(tmp_path, **changes or {}), ending(topk=BASE, **losses))
    return found


def test_a_setting_with_room(tmp_path: Path) -> None:
    found = check(tmp_path, hash=WORSE, frozen=WORSE, every_step=BETTER)
    assert found.level == "room"
    assert found.finding == (
        "**This setting can tell routers apart and has room above topk.** Hash routing (+0.1100 [+0.0852, +0.1348]) and a "
        "frozen random router (+0.1100 [+0.0852, +0.1348]) are worse than topk. The dense gradient is better by 0.1100 "
        "[0.0852, 0.1348]: so much a router that approximates it can gain at equal steps."
    )
    assert first_line([found]) == found.finding


@pytest.mark.parametrize("arm", ["hash", "frozen"])
def test_a_dense_gradient_above_routers_that_do_not_learn_is_room(tmp_path: Path, arm: str) -> None:
    """A baseline that is not shown to be better than they are does not change that routing can be learned."""
    found = check(tmp_path, **{"hash": WORSE, "frozen": WORSE, "every_step": BETTER, arm: EQUAL})
    assert found.level == "room"
    assert found.finding.startswith(
        "**This setting can tell routers apart and has room above topk, which is itself not shown to be better than "
        "routers that do not learn.** "
    )
    assert "is not shown to be worse than topk: +0.0000 [-0.0248, +0.0248]." in found.finding
    # .12, .09, .12 and .22, .20, .24 below: .11 +- 4.302653 * .017321 / sqrt(3), .22 +- 4.302653 * .02 / sqrt(3)
    gains = {arm: "0.1100 [0.0670, 0.1530]", ("frozen" if arm == "hash" else "hash"): "0.2200 [0.1703, 0.2697]"}
    assert found.finding.endswith(
        "The dense gradient is better than topk by 0.1100 [0.0852, 0.1348], than hash routing by "
        f"{gains['hash']} and than a frozen random router by {gains['frozen']}."
    )


@pytest.mark.parametrize("arm", ["hash", "frozen"])
def test_a_setting_that_cannot_tell(tmp_path: Path, arm: str) -> None:
    """One arm below that is as good as the dense gradient is enough."""
    found = check(tmp_path, **{"hash": WORSE, "frozen": WORSE, "every_step": BETTER, arm: BETTER})
    assert found.level == "cannot tell"
    assert found.finding.startswith("**This setting cannot tell routers apart, whatever the tables show.** ")
    assert "is better than topk: -0.1100 [-0.1348, -0.0852]." in found.finding
    assert "The dense gradient is better than topk (-0.1100 [-0.1348, -0.0852])." in found.finding
    name = {"hash": "hash routing", "frozen": "a frozen random router"}[arm]
    assert f"The dense gradient is not shown to be better than {name} (+0.0000 [+0.0000, +0.0000])." in found.finding


def test_both_faults_are_told(tmp_path: Path) -> None:
    found = check(tmp_path, hash=EQUAL, frozen=WORSE, every_step=EQUAL)
    assert found.level == "cannot tell" and "the largest that the interval allows is 0.0248" in found.finding


def test_as_good_needs_an_interval_within_the_smallest_difference(tmp_path: Path) -> None:
    losses = {"hash": EQUAL, "frozen": WORSE, "every_step": EQUAL}
    near = check(tmp_path, {"smallest-difference": 0.03}, **losses)
    assert "Hash routing is as good as topk within 0.03: +0.0000 [-0.0248, +0.0248]." in near.finding
    assert "is 0.0248, less than 0.03, the smallest that matters." in near.finding
    far = check(tmp_path, {"smallest-difference": 0.02}, **losses)
    assert "not shown to be worse" in far.finding and "as good" not in far.finding


def test_no_room_above(tmp_path: Path) -> None:
    found = check(tmp_path, hash=WORSE, frozen=WORSE, every_step=EQUAL)
    assert found.level == "no room shown"
    assert "**This setting can tell routers apart, but no room above topk is shown.**" in found.finding
    assert "cannot be shown here; the largest that the interval allows is 0.0248." in found.finding


def test_a_dense_gradient_that_hurts(tmp_path: Path) -> None:
    found = check(tmp_path, hash=WORSE, frozen=WORSE, every_step=WORSE)
    assert found.level == "no room shown" and "The dense gradient is worse than topk (+0.1100" in found.finding


@pytest.mark.parametrize(
    ("every_step", "truth", "level", "says"),
    [
        (EQUAL, MUCH_BETTER, "no room shown", "Oracle routing is better by 0.4900 [0.4652, 0.5148]: there is better routing, but"),
        (BETTER, MUCH_BETTER, "room", " Oracle routing is better by 0.4900 [0.4652, 0.5148]."),
        (EQUAL, EQUAL, "no room shown", "Oracle routing is not shown to be better than topk (+0.0000 [-0.0248, +0.0248])."),
    ],
)  # fmt: skip
def test_an_oracle(tmp_path: Path, every_step: list[float], truth: list[float], level: str, says: str) -> None:
    changes = {"headroom": ARMS | {"oracle": "truth"}}
    found = check(tmp_path, changes, hash=WORSE, frozen=WORSE, every_step=every_step, truth=truth)
    assert found.level == level and says in found.finding


def test_regions_have_a_truth_and_no_tokens_to_hash(tmp_path: Path) -> None:
    regions = {"task": "regions", "headroom": {"frozen": "frozen", "dense-gradient": "every-step", "oracle": "truth"}}
    found = check(tmp_path, regions, frozen=WORSE, every_step=BETTER, truth=MUCH_BETTER)
    assert found.level == "room"
    assert "A frozen random router (+0.1100 [+0.0852, +0.1348]) is worse than topk. The dense" in found.finding
    without = check(tmp_path, {"task": "regions"}, hash=WORSE, frozen=WORSE, every_step=BETTER)
    assert (
        without.level == "incomplete" and "names no variant for oracle routing (`headroom: oracle`)" in without.finding
    )


def test_missing_arms_leave_no_claim(tmp_path: Path) -> None:
    """Neither an arm that is not named, nor one that is not trained, nor one that lacks a seed."""
    changes = {"headroom": {"hash": "hash", "dense-gradient": "every-step", "oracle": "truth"}}
    found = check(tmp_path, changes, hash=WORSE, every_step=BETTER[:2])
    assert found.level == "incomplete"
    assert found.finding == (
        "**The headroom check is incomplete: no claim about what this setting can tell.** The study names no variant for "
        "a frozen random router (`headroom: frozen`); the dense gradient (`every-step`) has 2 of 3 pairs; oracle routing "
        "(`truth`) has 0 of 3 pairs."
    )


def test_no_interval_leaves_no_claim(tmp_path: Path) -> None:
    found = check(tmp_path, hash=WORSE, frozen=[1.1, math.nan, 3.1], every_step=BETTER)
    assert found.level == "undecided"
    assert "A frozen random router (`frozen`), or what it is compared with, diverged with at least one seed." in found.finding  # fmt: skip
    one = study(tmp_path, seeds=[1])
    (found,) = checks_of(one, ending(topk=[1.0], hash=[1.1], frozen=[1.1], every_step=[0.9]))
    assert found.level == "undecided" and "hash routing (`hash`) has one pair of seeds" in found.finding.lower()


def test_a_check_for_each_baseline(tmp_path: Path) -> None:
    two = {"two": {"label": "top-2"}} | {f"{name}-2": {"baseline": "two"} for name in ("hash", "frozen", "every-step")}
    variants = VARIANTS | two | {"two": {"label": "top-2", "baseline": "two"}}
    headroom = [ARMS, {"baseline": "two"} | {part: f"{name}-2" for part, name in ARMS.items()}]
    logs = ending(
        topk=BASE,
        hash=WORSE,
        frozen=WORSE,
        every_step=BETTER,
        two=BASE,
        hash_2=EQUAL,
        frozen_2=WORSE,
        every_step_2=EQUAL,
    )
    found = checks_of(study(tmp_path, variants=variants, headroom=headroom), logs)
    assert [(one.baseline, one.level) for one in found] == [("topk", "room"), ("two", "cannot tell")]
    line = first_line(found)
    assert line.startswith("Around topk: **This setting can tell") and " Around top-2: **This setting cannot" in line
    assert "\n" not in line


def test_a_study_without_the_check_says_how(tmp_path: Path) -> None:
    assert checks_of(study_of(tmp_path), ending(topk=BASE)) == []
    assert first_line([]).startswith("**Headroom was not checked") and "under `headroom`" in first_line([])


def test_the_ladder_as_a_table(tmp_path: Path) -> None:
    found = check(tmp_path, hash=WORSE, every_step=BETTER)
    table = headroom_table(found)
    rungs = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]]
    assert rungs == ["frozen", "hash", "topk", "every-step"]
    assert "| not finished |" in table.splitlines()[2]
    assert "| 3 of 3 | 1.8900 ± 0.9950 | -0.1100 [-0.1348, -0.0852] | better |" in table
    write_csv([found], tmp_path / "headroom.csv")
    with (tmp_path / "headroom.csv").open(newline="") as stream:
        rows = {row["part"]: row for row in csv.DictReader(stream)}
    assert (rows["frozen"]["pairs"], rows["frozen"]["verdict"], rows["oracle"]["variant"]) == ("", "", "")
    assert rows["hash"]["level"] == "incomplete" and rows["baseline"]["loss"] == "2"
    assert float(rows["hash"]["difference"]) == pytest.approx(0.11) and rows["hash"]["verdict"] == "worse"
    assert float(rows["hash"]["half-width"]) == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-4)
