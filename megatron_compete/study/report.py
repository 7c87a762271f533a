"""A study's report from its raw logs alone: the same logs give the same bytes.

Markdown is written first; the HTML page is made of it, with the figures inside.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_compete.common.errors import CompeteError
from megatron_compete.report.page import stylesheet
from megatron_compete.study.config import Study
from megatron_compete.study.figures import draw_all
from megatron_compete.study.logs import METRICS, RunLog, read_logs, write_curves
from megatron_compete.study.statistics import CONFIDENCE
from megatron_compete.study.table import Row, markdown_table, rows_of, statistics_table, write_csv
from megatron_compete.study.timing import read_timing, with_timing

CLOCKS = {
    "processor": "processor time (user and system) of the rank's process, over training steps alone",
    "wall": "wall-clock time of training steps alone, the device waited for at both ends",
}


def write_report(study: Study, folder: Path) -> None:
    """Write table, figures, Markdown and HTML into `folder`.

    Raises:
        CompeteError: no variant is finished together with its baseline, or a library for figures is missing.
    """
    _check_libraries()
    logs, rows, timed = read_results(study, folder)
    write_csv(rows, folder / "table.csv")
    write_curves(read_logs(study, folder), folder / "curves.csv")
    (folder / "table.md").write_text(markdown_table(rows))
    figures = draw_all(study, logs, rows, folder)
    text = markdown_report(study, logs, rows, figures, timed)
    (folder / "report.md").write_text(text)
    (folder / "report.html").write_text(html_page(study.title or study.name, text, folder))


def read_results(study: Study, folder: Path) -> tuple[dict[str, list[RunLog]], list[Row], bool]:
    """The finished runs, the table's rows, and whether seconds were measured apart from training.

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
    return logs, rows, timed


def _check_libraries() -> None:
    for name in ("matplotlib", "scipy", "markdown"):
        try:
            __import__(name)
        except ImportError:
            raise CompeteError(f"the report needs {name}: pip install 'megatron-compete[report]'") from None


def markdown_report(
    study: Study, logs: Mapping[str, Sequence[RunLog]], rows: Sequence[Row], figures: Mapping[str, str], timed: bool
) -> str:
    """The report as Markdown; figures lie beside it.

    Args:
        timed: seconds were measured apart from training.
    """
    parts = [
        f"# {study.title or study.name}",
        _setting(study, logs),
        "## Loss",
        _how_to_read(study, rows, timed),
        markdown_table(rows),
        "## Router statistics",
        "At the last probe, means over seeds; saturation half-way.",
        statistics_table(rows),
        "\n".join(f"- **{name}**: {meaning}" for name, meaning in METRICS.items()),
        "## Figures",
        *(f"![{name.removesuffix('.png')}]({name})\n\n*{caption}*" for name, caption in figures.items()),
        "## Pairing",
        pairing(study, logs),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _setting(study: Study, logs: Mapping[str, Sequence[RunLog]]) -> str:
    runs = sum(len(some) for some in logs.values())
    planned = sum(len(study.seeds_of(name)) for name in study.variants)
    tokens = next(iter(logs.values()))[0].tokens
    per_run = int(max(tokens.values()))
    share = "" if runs == planned else f" **{planned - runs} of the {planned} planned runs are missing.**"
    return f"{len(logs)} variants, {runs} runs of {study.steps} steps ({per_run:,} tokens each).{share}"


def _how_to_read(study: Study, rows: Sequence[Row], timed: bool) -> str:
    compared = sum(row.variant != row.baseline for row in rows)
    source = "median over a variant's seeds"
    if timed and study.timing is not None:
        source = (
            f"of {study.timing.steps} steps measured with nothing beside them, median of {study.timing.rounds} rounds"
        )
    return (
        f"Held-out loss in nats per token: mean ± standard deviation over seeds. Differences are paired by seed, with the "
        f"{CONFIDENCE:.0%} interval of Student's t; negative is better than the baseline. The intervals of {compared} "
        f"variants are not corrected for their number, and an interval that holds 0 says nothing either way. Seconds: "
        f"{CLOCKS[study.clock]}, {source}; at equal seconds a pair is compared when the faster of "
        "the two is done, between probes by straight line. The last column is the time of all steps relative to the "
        "baseline's."
    )


def pairing(study: Study, logs: Mapping[str, Sequence[RunLog]]) -> str:
    """Whether runs of a seed really began alike, and whether one code trained them all."""
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
        text += f" **The runs were trained by {len(codes)} versions of the code** ({', '.join(codes)})."
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
