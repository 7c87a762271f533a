"""A study's report from its raw logs alone: the same logs give the same bytes.

Markdown is written first; the HTML page is made of it, with the figures inside.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.common.errors import CompeteError
from megatron_compete.report.page import stylesheet
from megatron_compete.study import comparisons, headroom
from megatron_compete.study.axes import METERED, NEAR, meter
from megatron_compete.study.comparisons import Declared
from megatron_compete.study.config import Axis, Study
from megatron_compete.study.figures import draw_all
from megatron_compete.study.headroom import Check
from megatron_compete.study.logs import METRICS, RunLog, read_logs, write_curves
from megatron_compete.study.statistics import CONFIDENCE, POWER
from megatron_compete.study.table import (
    AXIS_NAMES,
    UNFAIR,
    Row,
    differences_table,
    losses_table,
    rows_of,
    shown_axes,
    statistics_table,
    unit_of,
    write_csv,
)
from megatron_compete.study.timing import read_timing, with_timing

CLOCKS = {
    "processor": "processor time (user and system) of the rank's process, over training steps alone",
    "wall": "wall-clock time of training steps alone, the device waited for at both ends",
}


@dataclass(frozen=True)
class Results:
    """What raw logs say, before any of it is written."""

    logs: dict[str, list[RunLog]]
    """The finished runs of each variant."""
    rows: list[Row]
    axes: list[Axis]
    """Those that people are shown."""
    checks: list[Check]
    declared: list[Declared]
    timed: bool
    """Seconds were measured apart from training."""


def write_report(study: Study, folder: Path) -> None:
    """Write tables, figures, Markdown and HTML into `folder`.

    Raises:
        CompeteError: no variant is finished together with its baseline, or a library for figures is missing.
    """
    _check_libraries()
    results = read_results(study, folder)
    write_tables(study, results, folder)
    write_curves(read_logs(study, folder), folder / "curves.csv")
    figures = draw_all(study, results.logs, results.rows, results.axes, results.checks, folder)
    text = markdown_report(study, results, figures)
    (folder / "report.md").write_text(text)
    (folder / "report.html").write_text(html_page(study.title or study.name, text, folder))


def write_tables(study: Study, results: Results, folder: Path) -> None:
    """The tables for programs, and those for people by themselves; those that have no line are deleted."""
    write_csv(results.rows, folder / "table.csv")
    (folder / "table.md").write_text("\n".join(_tables(study, results)))
    for there, path in ((results.checks, folder / "headroom.csv"), (results.declared, folder / "comparisons.csv")):
        if not there:
            path.unlink(missing_ok=True)
    if results.checks:
        headroom.write_csv(results.checks, folder / "headroom.csv")
    if results.declared:
        comparisons.write_csv(results.declared, folder / "comparisons.csv")


def _tables(study: Study, results: Results) -> list[str]:
    """Losses, and differences where anything is compared."""
    labels = {name: study.label_of(name) for name in study.variants}
    tables = [losses_table(results.rows, results.axes)]
    if any(not row.is_baseline for row in results.rows):
        tables.append(differences_table(results.rows, results.axes, labels))
    return tables


def read_results(study: Study, folder: Path) -> Results:
    """Everything that the report shows as numbers.

    Raises:
        CompeteError: no variant is finished together with its baseline.
    """
    logs, timing = read_logs(study, folder), read_timing(study, folder)
    timed = logs.keys() <= timing.keys()
    logs = with_timing(study, logs, timing) if timed else logs
    rows = rows_of(study, logs)
    if not rows:
        raise CompeteError(
            f"{folder} has no finished runs of {study.baseline}: train them first, without --report-only"
        )
    axes, checks = shown_axes(study, rows), headroom.checks_of(study, logs)
    return Results(logs, rows, axes, checks, comparisons.declared_of(study, logs), timed)


def _check_libraries() -> None:
    for name in ("matplotlib", "scipy", "markdown"):
        try:
            __import__(name)
        except ImportError:
            raise CompeteError(f"the report needs {name}: pip install 'megatron-compete[report]'") from None


def markdown_report(study: Study, results: Results, figures: Mapping[str, str]) -> str:
    """The report as Markdown; figures lie beside it.

    Args:
        figures: {file: caption}.
    """
    parts = [
        f"# {study.title or study.name}",
        headroom.first_line(results.checks),
        *_headroom(study, results.checks, figures),
        _setting(study, results.logs),
        *_declared(study, results.declared),
        "## All variants",
        _exploratory(results),
        *_tables(study, results),
        _how_to_read(study, results),
        "## Router statistics",
        "At the last probe, means over seeds; saturation half-way.",
        statistics_table(results.rows),
        "\n".join(f"- **{name}**: {meaning}" for name, meaning in METRICS.items()),
        "## Figures",
        *(_figure(name, caption) for name, caption in figures.items() if name != "headroom.png"),
        "## Pairing",
        pairing(study, results.logs),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _figure(name: str, caption: str) -> str:
    return f"![{name.removesuffix('.png')}]({name})\n\n*{caption}*"


def _headroom(study: Study, checks: Sequence[Check], figures: Mapping[str, str]) -> list[str]:
    """Below the first line: what it rests on."""
    parts = [headroom.headroom_table(check) for check in checks]
    if checks:
        parts.append(
            f"At equal steps; differences in {unit_of(study)} are paired by seed, with the {CONFIDENCE:.0%} interval of each "
            "one alone. The check is for this setting: its data, model, length and tuning."
        )
    return parts + [_figure(name, figures[name]) for name in figures if name == "headroom.png"]


def _setting(study: Study, logs: Mapping[str, Sequence[RunLog]]) -> str:
    runs = sum(len(some) for some in logs.values())
    planned = sum(len(study.seeds_of(name)) for name in study.variants)
    steps = _range([study.steps_of(name) for name in logs])
    tokens = _range([int(max(some[0].tokens.values())) for some in logs.values()])
    share = "" if runs == planned else f" **{planned - runs} of the {planned} planned runs are missing.**"
    return f"{len(logs)} variants, {runs} runs of {steps} steps ({tokens} {'tokens' if study.task == 'language' else 'inputs'} each).{share}"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _declared(study: Study, declared: Sequence[Declared]) -> list[str]:
    if not declared:
        return []
    many = f"{len(declared)} comparisons are" if len(declared) > 1 else "One comparison is"
    text = (
        f"{many} declared in the study's file, and corrected for that number: verdicts follow the simultaneous interval "
        f"(Bonferroni, {declared[0].confidence:.2%} each, {CONFIDENCE:.0%} together). Holm's p can be below "
        f"{1 - CONFIDENCE:.2f} where it still holds 0; nothing is claimed then. Negative is better. Without all planned "
        "pairs there is no verdict."
    )
    costs = "Where the two are read, what the first had had there relative to the second, and the deviation of the differences."
    if study.smallest_difference:
        costs += (
            f" Seeds: how many show a true difference of {study.smallest_difference:g} with {POWER:.0%} power at the simultaneous "
            "level (noncentral t), if the deviation is what this sample has; from few seeds that is a rough estimate."
        )
    return [
        "## Declared comparisons",
        text,
        comparisons.declared_table(study, declared),
        costs,
        comparisons.costs_table(study, declared),
    ]


def _exploratory(results: Results) -> str:
    found = comparisons.exploratory_of(results.rows, results.axes, results.declared, results.checks)
    if results.declared or results.checks:
        besides = ["the declared comparisons"] * bool(results.declared) + ["the headroom check"] * bool(results.checks)
        text = f"Beyond {' and '.join(besides)} all is exploratory and not corrected"
    else:
        text = "No comparison is declared in the study's file (`comparisons`), so all is exploratory and not corrected"
    return text + (
        f". Of {found.count} such intervals here, {found.expected:.1f} would be expected to exclude 0 if nothing differed from "
        f"its baseline; {found.clear} do."
    )


def _how_to_read(study: Study, results: Results) -> str:
    source = "median over a variant's seeds"
    if results.timed and study.timing is not None:
        source = (
            f"of {study.timing.steps} steps measured with nothing beside them, median of {study.timing.rounds} rounds"
        )
    names = _list([AXIS_NAMES[axis] for axis in METERED if axis in results.axes])
    parts = [
        f"Held-out loss ({unit_of(study)}): mean ± standard deviation over seeds. Differences are paired by seed, with the "
        f"{CONFIDENCE:.0%} interval of Student's t (p values in `table.csv`); negative is better than the baseline, and an "
        f"interval that holds 0 says nothing either way. Times (x) are relative to the baseline's, for all steps. Seconds: {CLOCKS[study.clock]}, {source}."
    ]
    if names:
        parts.append(
            f"At equal {names} a pair is compared where the one that has had the smaller amount at its end ends, and the other "
            f"is read there, between probes by straight line; ends within {NEAR:.0%} of each other are compared end to end."
        )
    if any(held.is_unfair for row in results.rows for held in row.held.values()) or any(
        one.is_unfair for one in results.declared
    ):
        parts.append(
            f"{UNFAIR}: one of the two was cut off while its learning rate still decayed, which is unfair to it: at its own end it "
            "would be better off. Compare ends that are equal instead."
        )
    if "data" in results.axes:
        parts.append(
            "At equal data each run counts at its own best probe, whatever it took: as many passes over the same samples as it "
            "likes. That probe is chosen on the text it is measured on, for all variants alike."
        )
    without = [study.label_of(name) for name, runs in results.logs.items() if meter(runs, "flops", study.clock) is None]
    if len(without) == len(results.logs):
        parts.append("The raw logs hold no floating-point operations, so nothing is compared at equal FLOPs.")
    elif without:
        parts.append(f"The raw logs of {len(without)} of {len(results.logs)} variants hold no floating-point operations: those are not compared at equal FLOPs.")  # fmt: skip
    return "\n\n".join(parts)


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def pairing(study: Study, logs: Mapping[str, Sequence[RunLog]]) -> str:
    """Whether runs of a seed really began alike, and whether one code trained them all."""
    text = "The runs of a seed share the teacher, its inputs, their order and what weights start from. "
    if study.task == "language":
        seeds = ", ".join(f"`--{name}`" for name in study.seed_arguments)
        text = f"A run's seed is given to {seeds}: Megatron draws initial weights and the order of the data from `--seed`. "
    unlike = []
    for name, runs in logs.items():
        other = {run.seed: run.weights for run in logs.get(study.baseline_of(name), ())}
        unlike += [f"{name}/seed-{run.seed}" for run in runs if other.get(run.seed, run.weights) != run.weights]
    if unlike:
        text += f"Initial weights outside the routers differ from the baseline's in {', '.join(unlike)}."
    else:
        text += "Initial weights outside the routers were the same in every pair (compared by digest)."
    codes = sorted({run.code for runs in logs.values() for run in runs})
    if len(codes) > 1:
        text += (
            f" **The runs were trained by {len(codes)} versions of the code** ({', '.join(codes)}): their seconds may be of other "
            "machines."
        )
    return text


def html_page(title: str, text: str, folder: Path) -> str:
    """One page that needs no other file: figures are data URIs."""
    import markdown

    body = markdown.markdown(text, extensions=["tables"])
    body = re.sub(r'src="([^":]+\.png)"', lambda found: f'src="{_data_uri(folder / found[1])}"', body)
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{stylesheet()}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n<main>\n{body}\n</main>\n</body></html>\n'


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
