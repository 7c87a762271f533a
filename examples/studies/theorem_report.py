"""Exponents of the profiles that `theorem.py` has logged, as tables, a figure and a report.

A profile's exponent is the slope of log H against log eps by least squares over its smallest distances. A cell of the tables
has the mean over truths and, in brackets, the lowest and highest slope between two neighbouring distances of any truth: the
spread that is seen, not a confidence interval, as there is no noise.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from examples.studies.theorem_profile import DIRECTIONS, Case

FITTED = 4
"""How many of the smallest distances an exponent is fitted to."""
DISTANCE_SHOWN = 1e-3
"""Profiles that reach further down have slopes of 1.5 and 2 to be compared with, and not 2 and 4."""
AGREEMENT = 1.01
"""Starts agree where their distances are within this factor of the least."""
COLOURS = {
    "softmax-bias": "#D55E00",
    "softmax": "#E69F00",
    "response-bias": "#0072B2",
    "response": "#009E73",
    "share": "#CC79A7",
}
"""Of Okabe and Ito, which people with colour-blindness can tell apart."""
GATES = {
    "softmax-bias": "softmax", "softmax": "softmax, no bias",
    "response-bias": "response", "response": "response, no bias", "share": "share of response",
}  # fmt: skip
EXPERTS = {"linear": "linear", "tanh": "tanh", "gelu": "GELU", "relu": "ReLU"}
SPLITS = {
    "intercept": "intercepts", "slope": "slopes", "both": "slopes and intercepts alike", "opposite": "slopes against intercepts",
    "variance": "log variances", "gate-slope": "slopes of the gate",
}  # fmt: skip


class Logged(Protocol):
    """A line of the log."""

    @property
    def case(self) -> Case: ...
    @property
    def eps(self) -> tuple[float, ...]: ...
    @property
    def distances(self) -> tuple[tuple[float, ...], ...]: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Exponent:
    """Of one profile."""

    fitted: float
    local: tuple[float, ...]
    """Slopes between neighbours of the fitted distances, the smallest first."""


@dataclass(frozen=True)
class Cell:
    """One kind of mixture, split one way, over its truths."""

    count: int
    mean: float
    low: float
    high: float
    agreeing: float
    """Share of the distances at which two starts or more found the least."""

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def exponent(eps: Sequence[float], least: Sequence[float]) -> Exponent:
    """Slope of log H over log eps at the `FITTED` smallest distances, which come first."""
    x, y = np.log(eps[:FITTED]), np.log(least[:FITTED])
    return Exponent(float(np.polyfit(x, y, 1)[0]), tuple((np.diff(y) / np.diff(x)).tolist()))


def exponent_of(line: Logged) -> Exponent:
    return exponent(line.eps, [min(starts) for starts in line.distances])


Key = tuple[str, str, str, int, int]
"""Expert, gate, split, true experts, atoms."""


def key_of(case: Case) -> Key:
    return case.expert, f"{case.gate}-bias" if case.bias else case.gate, case.split, case.experts, case.atoms


def cells(lines: Sequence[Logged]) -> dict[Key, Cell]:
    """Every cell that the log has profiles of, without those at refined nodes."""
    groups: dict[Key, list[Logged]] = {}
    for line in lines:
        if line.case.refined == 1:
            groups.setdefault(key_of(line.case), []).append(line)
    return {key: _cell(group) for key, group in groups.items()}


def _cell(lines: Sequence[Logged]) -> Cell:
    exponents = [exponent_of(line) for line in lines]
    local = [slope for one in exponents for slope in one.local]
    agreeing = [
        sum(one <= AGREEMENT * min(starts) for one in starts) > 1 for line in lines for starts in line.distances
    ]
    mean = sum(one.fitted for one in exponents) / len(exponents)
    return Cell(len(lines), mean, min(local), max(local), sum(agreeing) / len(agreeing))


def refinements(lines: Sequence[Logged]) -> dict[Key, float]:
    """How much an exponent changes when all nodes are doubled, on the first truth."""
    first = {(key_of(line.case), line.case.refined): exponent_of(line).fitted for line in lines if line.case.truth == 0}
    return {key: first[key, 2] - first[key, 1] for key, refined in first if refined == 2 and (key, 1) in first}


def write_report(lines: Sequence[Logged], planned: int, folder: Path) -> None:
    """Write exponents.csv, exponents.png and report.md."""
    found, changes = cells(lines), refinements(lines)
    write_csv(found, changes, folder / "exponents.csv")
    draw(lines, found, folder / "exponents.png")
    (folder / "report.md").write_text(markdown(lines, found, changes, planned))


def write_csv(found: Mapping[Key, Cell], changes: Mapping[Key, float], path: Path) -> None:
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["expert", "gate", "split", "true-experts", "atoms", "truths", "exponent", "lowest-slope", "highest-slope",
                        "starts-agree", "change-with-double-nodes"])  # fmt: skip
        for key, cell in sorted(found.items()):
            numbers = [f"{value:.4f}" for value in (cell.mean, cell.low, cell.high, cell.agreeing)]
            table.writerow([*key, cell.count, *numbers, f"{changes[key]:+.1e}" if key in changes else ""])


def markdown(lines: Sequence[Logged], found: Mapping[Key, Cell], changes: Mapping[Key, float], planned: int) -> str:
    """The whole report."""
    minutes = sum(line.seconds for line in lines) / 60
    agreeing = min(cell.agreeing for cell in found.values())
    text = f"""# Exponents of the least Hellinger distance

H(eps) is the least Hellinger distance between a true mixture of Gaussian experts and a fitted one with more experts, of which
two stand for one true expert and are held eps apart. H ~ eps^r: a sample of n cannot tell an eps below n^(-1 / 2r), so that
r = 2 is a rate of n^(-1/4), 4 of n^(-1/8), 6 of n^(-1/12). What the mixtures are: `examples/studies/theorem_profile.py`.

{len(lines)} of {planned} profiles, {minutes:.1f} minutes of processor time. A cell has the exponent fitted to the {FITTED} smallest
distances, mean over truths, and in brackets the lowest and highest slope between two neighbours of them for any truth. Distances
are the least of several starts; nothing proves that they are global minima.

![Distances and exponents](exponents.png)

## Two atoms for one of two true experts
"""
    text += _table(found, [(split, expert, 2, 2) for split in DIRECTIONS for expert in EXPERTS])
    text += "\n## Three atoms for one of two true experts\n"
    text += _table(found, [("intercept", expert, 2, 3) for expert in EXPERTS])
    text += "\n## Two atoms for one of three true experts\n"
    text += _table(found, [("intercept", expert, 3, 2) for expert in EXPERTS])
    text += "\n## Numerics\n\n"
    for title, kinks in (("experts without kinks", False), ("ReLU experts", True)):
        worst = [abs(change) for (expert, *_), change in changes.items() if (expert == "relu") is kinks]
        if worst:
            text += f"- Twice the nodes in x and in y changed none of {len(worst)} exponents of {title} by more than {max(worst):.1e}.\n"
    text += f"- Two starts or more found the least distance at {agreeing:.0%} or more of the distances of every cell.\n"
    return text


def _table(found: Mapping[Key, Cell], rows: Sequence[tuple[str, str, int, int]]) -> str:
    table = f"\n| split | experts | {' | '.join(GATES.values())} |\n|---|---|{'---|' * len(GATES)}\n"
    for split, expert, experts, atoms in rows:
        row = [found.get((expert, gate, split, experts, atoms)) for gate in GATES]
        if any(row):
            table += f"| {SPLITS[split]} | {EXPERTS[expert]} | {' | '.join(str(cell or '') for cell in row)} |\n"
    return table


def draw(lines: Sequence[Logged], found: Mapping[Key, Cell], path: Path) -> None:
    """Above, the first truth's distances with split intercepts; below, exponents by split. A column for each expert."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(EXPERTS), figsize=(3.1 * len(EXPERTS), 6.2), sharey="row", layout="constrained"
    )
    for (expert, label), above, below in zip(EXPERTS.items(), *axes):
        _draw_distances(above, [line for line in lines if line.case.expert == expert])
        _draw_exponents(below, {key: cell for key, cell in found.items() if key[0] == expert})
        above.set_title(f"{label} experts", fontsize=10)
    axes[0][0].set_ylabel("H, split intercepts")
    axes[1][0].set_ylabel("exponent of H")
    handles = [
        pyplot.Line2D([], [], color=COLOURS[gate], marker="o", markersize=4, label=label)
        for gate, label in GATES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(GATES), fontsize=9, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def _draw_distances(axes: Any, lines: Sequence[Logged]) -> None:
    for line in lines:
        _, gate, *rest = key_of(line.case)
        if rest == ["intercept", 2, 2] and line.case.truth == 0 and line.case.refined == 1:
            least = [min(starts) for starts in line.distances]
            axes.loglog(line.eps, least, color=COLOURS[gate], marker="o", markersize=3, linewidth=1.2)
    smallest = min((line.eps[0] for line in lines), default=DISTANCE_SHOWN)
    for power, style in ((1.5, "-."), (2, ":")) if smallest < DISTANCE_SHOWN else ((2, ":"), (4, "--")):
        x = np.array([max(smallest, 0.4 * 1e-10 ** (1 / power)), 0.4])
        y = 0.1 * (x / 0.4) ** power
        axes.loglog(x, y, color="grey", linestyle=style, linewidth=0.9)
        axes.annotate(f"eps^{power}", (x[0], y[0]), (3, -9), textcoords="offset points", fontsize=7, color="grey")
    axes.set_ylim(1e-12, 0.2)
    axes.set_xlabel("distance eps of the two atoms", fontsize=8)
    _finish(axes)


def _draw_exponents(axes: Any, found: Mapping[Key, Cell]) -> None:
    shown: list[str] = list(DIRECTIONS)
    for (_, gate, split, experts, atoms), cell in found.items():
        if (experts, atoms) == (2, 2):
            x = shown.index(split) + 0.15 * (list(GATES).index(gate) - 2)
            axes.plot([x, x], [cell.low, cell.high], color=COLOURS[gate], linewidth=1.5)
            axes.plot([x], [cell.mean], color=COLOURS[gate], marker="o", markersize=4)
    axes.set_ylim(1, 4.5)
    axes.set_xticks(range(len(shown)), [split.replace("-", " ") for split in shown], rotation=40, ha="right")
    axes.grid(axis="y", linewidth=0.3)
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
