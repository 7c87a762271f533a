"""What the sections of a run's page share: the runs, their events, and charts over the same steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_compete.report.charts import Mark, lines
from megatron_compete.report.event_files import Curve
from megatron_compete.report.layers import by_layer
from megatron_compete.report.run import Run
from megatron_compete.report.run_events import events_of

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM

CELLS, POINTS = 300_000, 100_000
"""Of all heat maps, and of all curves of a page together: so a page stays below 5 MB."""
COMPETITION = (
    ("competition/agreement", "share of the winners that the router would have chosen"),
    ("competition/distillation-loss", "distillation of the router, before its weight"),
    ("competition/diversity-loss", "mean cosine between the outputs of a token's winners"),
    ("competition/response-balance-loss", "entropy balance of the responses, before its weight"),
)
LOADS = (
    ("moe/load-max", "tokens of the busiest expert, relative to the mean"),
    ("moe/load-min", "tokens of the idlest expert, relative to the mean"),
    ("moe/router-entropy", "entropy of the router, nats per token"),
    ("moe/expert-change-rate", "top-K experts of fixed tokens that changed"),
)
DEAD = "moe/dead-experts"


@dataclass
class Sheet:
    """What the sections share."""

    runs: Sequence[Run]
    peak_tflops: float | None = None
    """What a GPU can at most, for MFU."""
    x_range: Any = None
    """Of the charts over steps, which move together."""

    def __post_init__(self) -> None:
        self.missing: list[str] = []
        self.shown: set[str] = set()
        self.single = len(self.runs) == 1
        self.events = {run.name: events_of(run) for run in self.runs}
        self.maps = {run.name: by_layer(run) for run in self.runs}
        shown = [name for name, _ in (*COMPETITION, *LOADS)] + [DEAD]
        rows = sum(len(layers) for maps in self.maps.values() for name, layers in maps.items() if name in shown or name.endswith("_loss"))  # fmt: skip
        self.columns = max(16, min(256, CELLS // max(1, rows)))
        self.limit = max(200, min(2000, POINTS // (20 * len(self.runs))))

    def curves(self, tag: str, read: Callable[[Run], Curve | None] | None = None) -> dict[str, Curve]:
        """A scalar of the runs that have it."""
        self.shown.add(tag)
        found = {run.name: read(run) if read else run.curve(tag) for run in self.runs}
        return {name: curve for name, curve in found.items() if curve is not None}

    def say_missing(self, what: str, curves: Mapping[str, Any], why: str = "") -> None:
        """Note the runs that lack something."""
        lacking = [run.name for run in self.runs if run.name not in curves]
        if lacking:
            whose = "" if self.single else f" of {', '.join(lacking)}"
            self.missing.append(f"{what}{whose}{f': {why}' if why else ''}")

    def chart(self, curves: Mapping[str, Curve], y_label: str, **more: Any) -> "LayoutDOM":
        """Curves over the steps, with the events of a single run."""
        series = {name: (curve.steps, curve.values) for name, curve in curves.items()}
        if self.single and len(series) == 1:
            series = {y_label: next(iter(series.values()))}
        chart = lines(series, x_label="step", y_label=y_label, marks=self.marks(), x_range=self.x_range, limit=self.limit, **more)  # fmt: skip
        self.x_range = self.x_range or chart.x_range
        return chart

    def marks(self) -> list[Mark]:
        """Of a single run; those of several would hide the curves, and are in the last section."""
        if not self.single:
            return []
        return [Mark(event.step, event.text, event.kind) for event in self.events[self.runs[0].name] if event.step is not None]  # fmt: skip
