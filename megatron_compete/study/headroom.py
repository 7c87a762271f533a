"""What a setting can tell about routers at all, from variants that bound what routing can gain in it.

Below a learned router lie hash routing (of tokens) and a frozen random router: where either is as good, nothing that a
router learns matters, and no comparison of routers says anything. Above it lie the whole gradient of the router's logits (utility at
every step, of all tokens) and, where the task has one, routing by the truth: where the former is no better, no router
that approximates it can be shown to be.

A claim needs the paired 95% interval to be clear of 0, and that the learned router matters needs all of those below. An interval
that holds 0 is told apart from one that lies within the smallest difference that matters: only the latter says "as good".
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_compete.study.axes import at_end, meet
from megatron_compete.study.config import Headroom, Study
from megatron_compete.study.logs import RunLog
from megatron_compete.study.statistics import Difference, Spread, Verdict, judge, paired_difference, spread
from megatron_compete.study.table import difference_cells, number, show_difference, show_spread

Logs = Mapping[str, Sequence[RunLog]]
Level = Literal["incomplete", "undecided", "cannot tell", "no room shown", "room"]

NAMES = {"hash": "hash routing", "frozen": "a frozen random router", "dense-gradient": "the dense gradient", "oracle": "oracle routing"}  # fmt: skip
BOUNDS = {
    "frozen": "below: random weights that never change",
    "hash": "below: the token alone decides",
    "baseline": "the learned router that is bounded",
    "dense-gradient": "above: the whole gradient of the router's logits (utility at every step)",
    "oracle": "above: the truth decides",
}
NEEDED = {"language": ("frozen", "hash", "dense-gradient"), "regions": ("frozen", "dense-gradient", "oracle")}
"""Parts without which nothing is said, by the study's task: regions have a truth, but no tokens to hash."""


@dataclass(frozen=True)
class Arm:
    """One rung of the ladder."""

    part: str
    """Key in the study's `headroom`, or `baseline`."""
    variant: str | None
    """None: the study names none."""
    label: str
    loss: Spread | None
    """Where it is compared; None before any run is finished."""
    difference: Difference | None
    """Loss minus the baseline's at equal steps."""
    planned: int
    """Pairs with the baseline when all runs are done."""
    verdict: Verdict

    @property
    def pairs(self) -> int:
        return 0 if self.difference is None else self.difference.count

    @property
    def shown(self) -> str:
        """The difference with its interval."""
        return show_difference(self.difference)


@dataclass(frozen=True)
class Check:
    """What the arms around one baseline say."""

    baseline: str
    label: str
    arms: dict[str, Arm]
    """By part, from the worst expected to the best; the baseline is among them."""
    level: Level
    finding: str
    """In words: one line, which begins with the verdict."""


def checks_of(study: Study, logs: Logs) -> list[Check]:
    """One for each section of the study's `headroom`."""
    return [_check(study, section, logs) for section in study.headroom]


def _check(study: Study, section: Headroom, logs: Logs) -> Check:
    baseline = section.baseline or study.baseline
    arms = {part: _arm(study, part, section.arms.get(part), baseline, logs) for part in ("frozen", "hash")}
    runs = logs.get(baseline, ())
    loss = spread(list(at_end(runs).losses.values())) if runs else None
    arms["baseline"] = Arm("baseline", baseline, study.label_of(baseline), loss, None, 0, "no pair")
    arms |= {part: _arm(study, part, section.arms.get(part), baseline, logs) for part in ("dense-gradient", "oracle")}
    dense = section.arms.get("dense-gradient")
    beyond = [
        (NAMES[part], _arm(study, "dense-gradient", dense, variant, logs))
        for part in ("hash", "frozen")
        if (variant := section.arms.get(part))
    ]
    level, finding = _find(arms, beyond, NEEDED[study.task], study.label_of(baseline), study.smallest_difference)
    return Check(baseline, study.label_of(baseline), arms, level, finding)


def _arm(study: Study, part: str, variant: str | None, baseline: str, logs: Logs) -> Arm:
    if variant is None:
        return Arm(part, None, NAMES[part], None, None, 0, "no pair")
    planned = len(set(study.seeds_of(variant)) & set(study.seeds_of(baseline)))
    label = study.label_of(variant)
    if variant not in logs or baseline not in logs:
        return Arm(part, variant, label, None, None, planned, "no pair")
    meeting = meet(logs[variant], logs[baseline], "steps", study.clock)
    assert meeting is not None, "every log has steps"
    difference = paired_difference(meeting.variant.losses, meeting.other.losses)
    verdict = judge(difference, smallest=study.smallest_difference)
    return Arm(part, variant, label, spread(list(meeting.variant.losses.values())), difference, planned, verdict)


def _find(
    arms: Mapping[str, Arm],
    beyond: Sequence[tuple[str, Arm]],
    needed: Sequence[str],
    label: str,
    smallest: float | None,
) -> tuple[Level, str]:
    """The verdict.

    Args:
        beyond: routers that do not learn, by name, each with the dense gradient's difference to it.
    """
    named = [arm for part, arm in arms.items() if part != "baseline" and (arm.variant or part in needed)]
    if missing := [_missing(arm) for arm in named if arm.pairs < max(arm.planned, 1)]:
        return "incomplete", f"**The headroom check is incomplete: no claim about what this setting can tell.** {_sentence(missing)}"  # fmt: skip
    if without := [_without(arm) for arm in named if arm.verdict in ("diverged", "one pair")]:
        return "undecided", f"**The headroom check is undecided: no claim about what this setting can tell.** {_sentence(without)}"  # fmt: skip
    below = [arms[part] for part in ("hash", "frozen") if arms[part].variant]
    above = [arms[part] for part in ("dense-gradient", "oracle") if arms[part].variant]
    if equal := [arm for arm in below if arm.verdict != "worse"]:
        as_good = _sentence([_not_worse(arm, label, smallest) for arm in equal])
        if arms["dense-gradient"].verdict == "better" and all(arm.verdict == "better" for _, arm in beyond):
            text = f"**This setting can tell routers apart and has room above {label}, which is itself not shown to be better than routers that do not learn.** "
            than = [(label, arms["dense-gradient"]), *beyond]
            text += f"{as_good} The dense gradient is better {_list([f'than {name} by {_gain(arm)}' for name, arm in than])}."
            return "room", text + _oracle(arms["oracle"], label, found=True)
        text = f"**This setting cannot tell routers apart, whatever the tables show.** {as_good}"
        if better := [
            f"{NAMES[arm.part]} is better than {label} ({arm.shown})" for arm in above if arm.verdict == "better"
        ]:
            short = [f"{name} ({arm.shown})" for name, arm in beyond if arm.verdict != "better"]
            text += f" {_sentence(better)}" + (f" The dense gradient is not shown to be better than {_list(short)}." if short else "")  # fmt: skip
            return "cannot tell", text
        return "cannot tell", f"{text} {_no_room(arms, label, smallest)}"
    worse = _list([f"{NAMES[arm.part]} ({arm.shown})" for arm in below])
    worse = f"{_capital(worse)} {'are' if len(below) > 1 else 'is'} worse than {label}."
    if arms["dense-gradient"].verdict == "better":
        text = f"**This setting can tell routers apart and has room above {label}.** {worse} {_room(arms, label)}"
        return "room", text
    text = f"**This setting can tell routers apart, but no room above {label} is shown.** {worse} {_no_room(arms, label, smallest)}"
    return "no room shown", text


def _missing(arm: Arm) -> str:
    if arm.variant is None:
        return f"the study names no variant for {NAMES[arm.part]} (`headroom: {arm.part}`)"
    return f"{NAMES[arm.part]} (`{arm.variant}`) has {arm.pairs} of {arm.planned} pairs"


def _without(arm: Arm) -> str:
    if arm.verdict == "diverged":
        return f"{NAMES[arm.part]} (`{arm.variant}`), or what it is compared with, diverged with at least one seed"
    return f"{NAMES[arm.part]} (`{arm.variant}`) has one pair of seeds, which gives no interval"


def _not_worse(arm: Arm, label: str, smallest: float | None) -> str:
    name, shown = NAMES[arm.part], arm.shown
    match arm.verdict:
        case "better":
            return f"{name} is better than {label}: {shown}"
        case "as good as":
            return f"{name} is as good as {label} within {smallest:g}: {shown}"
        case _:
            return f"{name} is not shown to be worse than {label}: {shown}"


def _room(arms: Mapping[str, Arm], label: str) -> str:
    text = f"The dense gradient is better by {_gain(arms['dense-gradient'])}: so much a router that approximates it can gain at equal steps."
    return text + _oracle(arms["oracle"], label, found=True)


def _no_room(arms: Mapping[str, Arm], label: str, smallest: float | None) -> str:
    arm = arms["dense-gradient"]
    assert arm.difference is not None
    interval = arm.difference.interval()
    assert interval is not None
    largest = max(-interval[0], 0.0)
    if arm.verdict == "worse":
        text = f"The dense gradient is worse than {label} ({arm.shown}): a gain of a router that approximates it is not to be expected here."
    else:
        text = f"The dense gradient is not shown to be better ({arm.shown}): a gain of a router that approximates it cannot be shown here; the largest that the interval allows is {largest:.4f}"
        text += f", less than {smallest:g}, the smallest that matters." if arm.verdict == "as good as" else "."
    return text + _oracle(arms["oracle"], label, found=False)


def _oracle(arm: Arm, label: str, found: bool) -> str:
    if arm.variant is None:
        return ""
    if arm.verdict != "better":
        return f" Oracle routing is not shown to be better than {label} ({arm.shown})."
    if found:
        return f" Oracle routing is better by {_gain(arm)}."
    return f" Oracle routing is better by {_gain(arm)}: there is better routing, but the dense gradient is not shown to lead to it."  # fmt: skip


def _gain(arm: Arm) -> str:
    assert arm.difference is not None
    interval = arm.difference.interval()
    assert interval is not None
    return f"{-arm.difference.mean:.4f} [{-interval[1]:.4f}, {-interval[0]:.4f}]"


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _sentence(parts: Sequence[str]) -> str:
    return _capital("; ".join(parts)) + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def first_line(checks: Sequence[Check]) -> str:
    """What a report says before anything else."""
    if not checks:
        return (
            "**Headroom was not checked: this study does not say whether its setting can tell routers apart.** Name the "
            "variants that bound what routing can gain under `headroom` (`frozen`, `dense-gradient`; `hash` for "
            "text, `oracle` where the task has one)."
        )
    if len(checks) == 1:
        return checks[0].finding
    return " ".join(f"Around {check.label}: {check.finding}" for check in checks)


def headroom_table(check: Check) -> str:
    """The ladder, for people: only rungs that the study names."""
    lines = ["| arm | bounds | pairs | loss | minus the baseline's | |", "|---|---|---|---|---|---|"]
    for part, arm in check.arms.items():
        if arm.variant is None:
            continue
        loss = "not finished" if arm.loss is None else show_spread(arm.loss)
        if part == "baseline":
            cells = ["", loss, "baseline", ""]
        else:
            cells = [f"{arm.pairs} of {arm.planned}", loss, "" if arm.difference is None else arm.shown, "" if arm.difference is None else arm.verdict]  # fmt: skip
        lines.append(f"| {arm.label} | {BOUNDS[part]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_csv(checks: Sequence[Check], path: Path) -> None:
    """The ladders for programs."""
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["baseline", "level", "part", "variant", "planned", "loss", "pairs", "difference", "half-width", "p", "verdict"])  # fmt: skip
        for check in checks:
            for part, arm in check.arms.items():
                loss = "" if arm.loss is None else number(arm.loss.mean)
                verdict = "" if arm.difference is None else arm.verdict
                table.writerow([check.baseline, check.level, part, arm.variant or "", arm.planned, loss, *difference_cells(arm.difference), verdict])  # fmt: skip
