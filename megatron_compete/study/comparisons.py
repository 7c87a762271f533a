"""Comparisons that a study's file declares, corrected for how many there are, and what else the report shows.

A declared comparison has one number of pairs, that of its planned seeds: with fewer it has no verdict, because looking on
the way and stopping at a good moment would make any verdict worth less. Verdicts follow the simultaneous interval
(Bonferroni); Holm's p stands beside it, and can be below .05 where that interval still holds 0: then nothing is claimed.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from megatron_compete.study.axes import METERED, Meeting, meet, ratios
from megatron_compete.study.config import Axis, Comparison, Study
from megatron_compete.study.headroom import Check
from megatron_compete.study.logs import RunLog
from megatron_compete.study.statistics import (
    CONFIDENCE,
    MOST_PAIRS,
    Difference,
    Verdict,
    holm,
    judge,
    paired_difference,
    pairs_needed,
    simultaneous,
)
from megatron_compete.study.table import AXIS_NAMES, UNFAIR, Row, difference_cells, number, show_difference

Logs = Mapping[str, Sequence[RunLog]]


@dataclass(frozen=True)
class Declared:
    """One comparison."""

    variant: str
    other: str
    axis: Axis
    planned: int
    """Pairs when all runs are done."""
    confidence: float
    """Of the simultaneous interval."""
    difference: Difference | None = None
    """Loss minus the other's."""
    read_at: Literal["", "ends", "variant's end", "other's end", "best probes"] = ""
    """Where the two are compared."""
    is_unfair: bool = False
    """One of them was cut off while its learning rate decayed."""
    ratios: Mapping[Axis, float] = field(default_factory=dict)
    """What the variant had had there relative to the other."""
    holm_p: float | None = None
    verdict: Verdict | Literal["not finished", "not in the logs"] = "not finished"
    needed: int | None = None
    """Pairs with which the smallest difference that matters would be shown at this confidence with `POWER`; None where it
    is not given, or nothing is known of the deviation, or it is above `MOST_PAIRS`."""

    @property
    def pairs(self) -> int:
        return 0 if self.difference is None else self.difference.count

    @property
    def is_enough(self) -> bool:
        """Whether there are as many pairs as needed."""
        return self.needed is not None and self.pairs >= self.needed

    @property
    def interval(self) -> tuple[float, float] | None:
        """Simultaneous with those of all declared comparisons."""
        return None if self.difference is None else self.difference.interval(self.confidence)


def declared_of(study: Study, logs: Logs) -> list[Declared]:
    """In the file's order, finished or not: the correction counts all of them."""
    confidence = simultaneous(len(study.comparisons))
    found = [_compare(study, one, confidence, logs) for one in study.comparisons]
    complete = [one.pairs == one.planned for one in found]
    p_values = [one.difference.p_value if done and one.difference else None for one, done in zip(found, complete)]
    return [replace(one, holm_p=p_value) for one, p_value in zip(found, holm(p_values))]


def _compare(study: Study, comparison: Comparison, confidence: float, logs: Logs) -> Declared:
    variant, other = comparison.variant, study.other_of(comparison)
    planned = len(set(study.seeds_of(variant)) & set(study.seeds_of(other)))
    empty = Declared(variant, other, comparison.at, planned, confidence)
    if variant not in logs or other not in logs:
        return empty
    runs, others = logs[variant], logs[other]
    meeting = meet(runs, others, comparison.at, study.clock)
    if meeting is None:
        return replace(empty, verdict="not in the logs")
    difference = paired_difference(meeting.variant.losses, meeting.other.losses)
    found = replace(
        empty,
        difference=difference,
        read_at=_read_at(meeting),
        is_unfair=(cut_off := meeting.cut_off(variant, other)) is not None and study.decays(cut_off),
        ratios=ratios(runs, meeting.variant.step, others, meeting.other.step, study.clock),
        needed=_needed(difference, study.smallest_difference, confidence),
    )
    return (
        found
        if found.pairs < planned
        else replace(found, verdict=judge(difference, confidence, study.smallest_difference))
    )


def _read_at(meeting: Meeting) -> Literal["ends", "variant's end", "other's end", "best probes"]:
    if meeting.axis == "data":
        return "best probes"
    if meeting.variant.is_end and meeting.other.is_end:
        return "ends"
    return "variant's end" if meeting.variant.is_end else "other's end"


def _needed(difference: Difference | None, smallest: float | None, confidence: float) -> int | None:
    if not smallest or difference is None or difference.deviation is None or math.isnan(difference.deviation):
        return None
    return pairs_needed(smallest, difference.deviation, confidence)


def declared_table(study: Study, declared: Sequence[Declared]) -> str:
    """What was found, for people."""
    together = f"simultaneous [{declared[0].confidence:.2%}]"
    lines = [f"| comparison | at equal | pairs | difference [{CONFIDENCE:.0%}] | {together} | p (Holm) | verdict |"]
    lines.append("|---" * 7 + "|")
    for one in declared:
        difference = "" if one.difference is None else show_difference(one.difference)
        difference += f" {UNFAIR}" if one.is_unfair else ""
        interval = "" if one.interval is None else "[{:+.4f}, {:+.4f}]".format(*one.interval)
        p_value = "" if one.holm_p is None else f"{one.holm_p:.2g}"
        pairs = f"{one.pairs}" if one.pairs == one.planned else f"{one.pairs} of {one.planned}"
        cells = (AXIS_NAMES[one.axis], pairs, difference, interval, p_value, _words(one, study.smallest_difference))
        lines.append(f"| {_title(study, one)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def costs_table(study: Study, declared: Sequence[Declared]) -> str:
    """What either took where they are compared, and how many seeds would tell, for people."""
    metered = [axis for axis in METERED if any(axis in one.ratios for one in declared)]
    smallest = study.smallest_difference
    columns = ["comparison", "read at", *(AXIS_NAMES[axis] for axis in metered), "sd of differences"]
    columns += [f"seeds for {smallest:g}", "enough"] if smallest else []
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for one in declared:
        deviation = None if one.difference is None else one.difference.deviation
        known = deviation is not None and math.isfinite(deviation)
        cells = [_read(study, one), *(f"{one.ratios[axis]:.2f}x" if axis in one.ratios else "" for axis in metered)]
        cells.append(f"{deviation:.4f}" if known else "")
        if smallest:
            cells += [_seeds(one.needed), "yes" if one.is_enough else "no"] if known else ["", ""]
        lines.append(f"| {_title(study, one)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _title(study: Study, one: Declared) -> str:
    return f"{study.label_of(one.variant)} against {study.label_of(one.other)}"


def _words(one: Declared, smallest: float | None) -> str:
    if one.verdict == "as good as":
        return f"as good, within {smallest:g}"
    if one.verdict in ("better", "worse") and smallest and one.interval and max(map(abs, one.interval)) < smallest:
        return f"{one.verdict}, by less than {smallest:g}"
    return one.verdict


def _read(study: Study, one: Declared) -> str:
    match one.read_at:
        case "variant's end":
            return f"end of {study.label_of(one.variant)}"
        case "other's end":
            return f"end of {study.label_of(one.other)}"
        case "ends":
            return "both ends"
    return one.read_at


def _seeds(needed: int | None) -> str:
    return f"more than {MOST_PAIRS}" if needed is None else str(needed)


def write_csv(declared: Sequence[Declared], path: Path) -> None:
    """The declared comparisons for programs."""
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow([
            "variant", "against", "at", "planned", "pairs", "difference", "half-width", "p", "holm-p", "confidence", "low",
            "high", "verdict", "read-at", *(f"{axis}-ratio" for axis in METERED), "deviation", "seeds-needed",
        ])  # fmt: skip
        for one in declared:
            low, high = one.interval or (None, None)
            deviation = None if one.difference is None else one.difference.deviation
            table.writerow([
                one.variant, one.other, one.axis, one.planned, *difference_cells(one.difference), number(one.holm_p),
                number(one.confidence), number(low), number(high), one.verdict, one.read_at,
                *(number(one.ratios.get(axis)) for axis in METERED), number(deviation),
                "" if one.needed is None else one.needed,
            ])  # fmt: skip


@dataclass(frozen=True)
class Exploratory:
    """Intervals of the table that nothing declared."""

    count: int
    clear: int
    """Of which hold no 0."""

    @property
    def expected(self) -> float:
        """How many would hold no 0 if no variant differed from its baseline."""
        return (1 - CONFIDENCE) * self.count


def exploratory_of(
    rows: Sequence[Row], axes: Sequence[Axis], declared: Sequence[Declared], checks: Sequence[Check]
) -> Exploratory:
    """Counts the shown intervals that are neither declared nor part of the headroom check."""
    planned: set[tuple[frozenset[str | None], Axis]] = {(frozenset((one.variant, one.other)), one.axis) for one in declared}  # fmt: skip
    planned |= {(frozenset((arm.variant, check.baseline)), "steps") for check in checks for arm in check.arms.values()}
    found = [
        interval
        for row in rows
        for axis in axes
        if (frozenset({row.variant, row.baseline}), axis) not in planned
        and (difference := row.difference(axis)) is not None
        and (interval := difference.interval()) is not None
    ]
    return Exploratory(len(found), sum(low > 0 or high < 0 for low, high in found))
