"""The charts of all pages, in one look: Bokeh figures that work offline.

Colours are Okabe and Ito's, which people with any kind of colour vision tell apart, and cividis and a blue-red map for
values. A chart is given what was measured; how much of it a page can show is decided here (`sampling.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from megatron_compete.common.errors import CompeteError
from megatron_compete.report.sampling import Floats, block_means, first_of_runs, sample_extremes, windows

try:
    from bokeh.layouts import row
    from bokeh.models import (
        BasicTickFormatter,
        ColumnDataSource,
        FixedTicker,
        HoverTool,
        LayoutDOM,
        LinearColorMapper,
    )
    from bokeh.models.annotations import ColorBar, Legend, LegendItem, Span, Title
    from bokeh.palettes import Cividis256, RdBu11, interp_palette
    from bokeh.plotting import figure as Figure
    from bokeh.plotting import figure as new_figure
except ImportError as error:
    raise CompeteError(f"pages need Bokeh ({error}): pip install 'megatron-compete[report]'") from None

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7F00")
"""Okabe and Ito's colours, https://jfly.uni-koeln.de/color/; their yellow is darkened, for it is not seen on white."""
DASHES = ("solid", "dashed", "dotted", "dotdash")
MISSING = "#D9D9D9"
"""Colour of a cell without a value."""

POINTS = 2000
"""Points of a series that a chart shows at most, about."""
BARS = 400
"""Bars that can still be told apart; beyond, windows are shown."""
ROWS, COLUMNS = 200, 512
"""Cells of a heat map at most."""
FEW = 64
"""Points up to which their intervals stand apart."""
BROKEN = 200
"""Marks of values that are not finite in a series at most."""
HEIGHT = 280

Series = Mapping[str, tuple[ArrayLike, ArrayLike]]
"""{name: (x, y)}, each [N]; x ascending."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at a place of the x axis."""

    x: float
    text: str
    kind: Literal["start", "checkpoint", "stop", "failure"] = "start"


MARK_LOOKS = {"start": ("#7F7F7F", "dotted"), "checkpoint": (PALETTE[2], "dotted"), "stop": (PALETTE[4], "dashed"), "failure": (PALETTE[1], "solid")}  # fmt: skip


def lines(
    series: Series,
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log: bool = False,
    marks: Sequence[Mark] = (),
    x_range: Any = None,
    limits: Mapping[str, float] | None = None,
    points: bool = False,
    limit: int = POINTS,
) -> Figure:
    """Series over one axis, at most about `limit` points each with all extremes.

    What is NaN or infinite is a gap with a cross at its beginning; so is, on a logarithmic axis, what is not positive,
    without a cross.

    Args:
        log: logarithmic y.
        marks: vertical lines.
        x_range: another figure's `x_range`, to move with it.
        limits: horizontal lines by name.
        points: show dots, for series of few values.
    """
    chart = _figure(x_label, y_label, title, x_range, y_axis_type="log" if log else "linear")
    entries: list[tuple[str, list[Any]]] = []
    for place, (name, (x, y)) in enumerate(series.items()):
        x_N, y_N = _floats(x), _floats(y)
        if len(x_N) != len(y_N):
            raise ValueError(f"series {name!r} has {len(x_N)} x and {len(y_N)} y")
        color, dash = PALETTE[place % len(PALETTE)], DASHES[place // len(PALETTE) % len(DASHES)]
        _add_broken(chart, name, x_N, y_N, color, log)
        if log:
            y_N = np.where(np.isfinite(y_N) & (y_N <= 0), np.nan, y_N)
        x_N, y_N = sample_extremes(x_N, y_N, limit)
        source = ColumnDataSource({"x": _small(x_N), "y": y_N.astype(np.float32)}, name=name)
        shown = [chart.line("x", "y", source=source, color=color, line_dash=dash, line_width=1.6, name=name)]
        if points or len(x_N) == 1:
            shown.append(chart.scatter("x", "y", source=source, color=color, size=6, name=name))
        entries.append((name, shown))
        chart.add_tools(HoverTool(renderers=[shown[-1]], tooltips=[(x_label, "@x"), (name or y_label, "@y")], mode="mouse"))  # fmt: skip
    _add_limits(chart, limits)
    _add_legend(chart, entries, _add_marks(chart, marks))
    return chart


def steps_or_bars(
    series: Series,
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    limits: Mapping[str, float] | None = None,
    marks: Sequence[Mark] = (),
    x_range: Any = None,
) -> Figure:
    """Counts by step: bars of one short series; of a long one, or of several, the mean with a band from least to greatest.

    Args:
        limits: horizontal lines by name, such as a bound that counts never pass.
    """
    chart = _figure(x_label, y_label, title, x_range)
    chart.y_range.start = 0
    chart.yaxis.ticker.min_interval = 1
    entries: list[tuple[str, list[Any]]] = []
    for place, (name, (x, y)) in enumerate(series.items()):
        x_N, y_N = _floats(x), _floats(y)
        color = PALETTE[place % len(PALETTE)]
        _add_broken(chart, name, x_N, y_N, color, log=False)
        if len(series) == 1 and len(x_N) <= BARS:
            width = float(np.median(np.diff(x_N))) if len(x_N) > 1 else 1.0
            source = ColumnDataSource({"x": x_N, "top": np.where(np.isfinite(y_N), y_N, np.nan)}, name=name)
            shown = [chart.vbar("x", top="top", width=width, source=source, color=color, line_width=0, name=name)]
            tips = [(x_label, "@x"), (name or y_label, "@top")]
        else:
            middle, least, mean, greatest = windows(x_N, y_N, BARS)
            source = ColumnDataSource({"x": middle, "least": least, "mean": mean, "greatest": greatest}, name=name)
            band = chart.varea_step(
                "x", "least", "greatest", source=source, color=color, alpha=0.15, step_mode="center"
            )
            shown = [
                chart.step("x", "mean", source=source, color=color, line_width=1.6, mode="center", name=name),
                band,
            ]
            tips = [(x_label, "@x"), (name or y_label, "mean @mean, @least to @greatest")]
        entries.append((name, shown))
        chart.add_tools(HoverTool(renderers=shown[:1], tooltips=tips, mode="mouse"))
    _add_limits(chart, limits)
    _add_legend(chart, entries, _add_marks(chart, marks))
    return chart


def heat_map(
    values_RC: ArrayLike,
    *,
    x: str,
    y: str,
    label: str,
    title: str = "",
    columns: Sequence[float] | Sequence[str] | None = None,
    rows: Sequence[float] | Sequence[str] | None = None,
    diverging: bool = False,
    low: float | None = None,
    high: float | None = None,
    x_range: Any = None,
) -> Figure:
    """A map of values [R, C], of at most `ROWS` x `COLUMNS` cells; a cell beyond that is a mean. Grey where there is none.

    The first row is at the bottom.

    Args:
        x, y, label: what columns, rows and values are.
        columns, rows: of each its place on the axis (equal distances) or its name; default 0, 1, ...
        diverging: colours about 0.
        low, high: ends of the colours; default those of the values.
    """
    whole_RC = np.atleast_2d(_floats(values_RC))
    if whole_RC.ndim != 2 or whole_RC.size == 0:
        raise ValueError(f"a heat map of shape {whole_RC.shape}: give rows x columns")
    cells_RC = block_means(whole_RC, ROWS, COLUMNS).astype(np.float32)
    column_places, row_places = _places(columns, whole_RC.shape[1]), _places(rows, whole_RC.shape[0])
    chart = _figure(x, y, title, x_range, height=max(180, min(520, 110 + 14 * whole_RC.shape[0])))
    mapper = _mapper(cells_RC, diverging, low, high)
    (left, width), (bottom, height) = _extent(column_places), _extent(row_places)
    image = chart.image([cells_RC], x=left, y=bottom, dw=width, dh=height, color_mapper=mapper)
    chart.x_range.range_padding = chart.y_range.range_padding = 0
    chart.grid.visible = False
    chart.xaxis.ticker.min_interval = chart.yaxis.ticker.min_interval = 1  # no tick between two cells
    _name_ticks(chart.xaxis, columns)
    _name_ticks(chart.yaxis, rows)
    chart.add_layout(ColorBar(color_mapper=mapper, width=12, padding=6), "right")
    chart.add_layout(Title(text=label, align="center", text_font_style="normal", text_font_size="12px"), "right")
    chart.add_tools(HoverTool(renderers=[image], tooltips=[(x, "$x{0}"), (y, "$y{0}"), (label, "@image")]))
    return chart


def whiskers(
    series: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike]],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    apart: float = 0.0,
) -> Figure:
    """Points with their intervals beside the line of zero: {name: (x, value, low, high)}; what is not finite is left out.

    Args:
        apart: distance of two series that have the same x, so that neither hides the other.
    """
    chart = _figure(x_label, y_label, title, None)
    chart.add_layout(Span(location=0, dimension="width", line_color="#7F7F7F", line_dash="dashed"))
    starts = [float(_floats(columns[0])[0]) for columns in series.values() if len(_floats(columns[0]))]
    chart.scatter(starts, [0.0] * len(starts), alpha=0)  # has zero in sight
    entries: list[tuple[str, list[Any]]] = []
    for place, (name, columns) in enumerate(series.items()):
        x_N, value_N, low_N, high_N = (_floats(column) for column in columns)
        finite_N = np.isfinite(value_N) & np.isfinite(low_N) & np.isfinite(high_N)
        shown_N = x_N[finite_N] + apart * (place - (len(series) - 1) / 2)
        source = ColumnDataSource({"x": x_N[finite_N], "shown": shown_N, "value": value_N[finite_N], "low": low_N[finite_N], "high": high_N[finite_N]}, name=name)  # fmt: skip
        color = PALETTE[place % len(PALETTE)]
        few = len(x_N) <= FEW
        whole = chart.segment("shown", "low", "shown", "high", source=source, color=color, line_width=1.6, alpha=1 if few else 0.35, name=name)  # fmt: skip
        point = chart.scatter("shown", "value", source=source, color=color, size=6 if few else 4, name=name)
        chart.add_tools(HoverTool(renderers=[point], tooltips=[(x_label, "@x"), (name or y_label, "@value (@low to @high)")]))  # fmt: skip
        entries.append((name, [whole, point]))
    _add_legend(chart, entries)
    return chart


def beside(*charts: LayoutDOM, columns: int = 2) -> list[LayoutDOM]:
    """Rows of charts side by side, of equal widths; paper may be cut between rows."""
    rows = [list(charts[start : start + columns]) for start in range(0, len(charts), columns)]
    return [row(one, sizing_mode="stretch_width") for one in rows]


def _figure(x_label: str, y_label: str, title: str, x_range: Any, height: int = HEIGHT, **more: Any) -> Any:
    chart: Any = new_figure(
        height=height, sizing_mode="stretch_width", title=title, x_axis_label=x_label, y_axis_label=y_label,
        tools="xpan,box_zoom,xwheel_zoom,reset,save", active_scroll=None, toolbar_location="above",
        **({} if x_range is None else {"x_range": x_range}), **more,
    )  # fmt: skip
    chart.min_border_left = 72  # so that axes stand below each other
    chart.toolbar.logo = None
    chart.toolbar.autohide = True
    chart.outline_line_color = None
    chart.grid.grid_line_color = "#E5E5E5"
    chart.axis.axis_line_color = chart.axis.major_tick_line_color = "#7F7F7F"
    chart.axis.minor_tick_line_color = None
    chart.axis.axis_label_text_font_style = "normal"
    chart.axis.axis_label_text_font_size = chart.axis.major_label_text_font_size = "12px"
    chart.title.text_font_size = "14px"
    chart.xaxis.formatter = BasicTickFormatter(use_scientific=False)
    return chart


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _small(values_N: Floats) -> Any:
    """Steps as integers of 32 bits where they are such: half the bytes."""
    whole = len(values_N) > 0 and np.isfinite(values_N).all() and (values_N == np.round(values_N)).all()
    return values_N.astype(np.int32) if whole and abs(values_N).max() < 1 << 31 else values_N


def _add_broken(chart: Any, name: str, x_N: Floats, y_N: Floats, color: str, log: bool) -> None:
    """Crosses where runs of values that are not finite begin, at the height of the last one that is."""
    starts = first_of_runs(~np.isfinite(y_N))[:BROKEN]
    if len(starts) == 0:
        return
    usable = np.flatnonzero(np.isfinite(y_N) & ((y_N > 0) | (not log)))
    if len(usable):
        before = np.maximum(np.searchsorted(usable, starts) - 1, 0)
        heights = y_N[usable[before]]
    else:
        heights = np.full(len(starts), 1.0 if log else 0.0)
    source = ColumnDataSource({"x": x_N[starts], "y": heights, "value": [str(value) for value in y_N[starts]]}, name=f"{name}: not finite")  # fmt: skip
    crosses = chart.scatter("x", "y", source=source, marker="x", size=11, line_width=3, color=color, name="not finite")
    chart.add_tools(HoverTool(renderers=[crosses], tooltips=[("", "@x"), (f"{name} is not finite", "@value")]))


def _add_limits(chart: Any, limits: Mapping[str, float] | None) -> None:
    for name, height in (limits or {}).items():
        line = chart.hspan(y=[height], line_color="#000000", line_dash="dashed", line_width=1.2, name=name)
        chart.add_tools(HoverTool(renderers=[line], tooltips=[(name, f"{height:g}")]))


def _add_marks(chart: Any, marks: Sequence[Mark]) -> list[tuple[str, list[Any]]]:
    entries: list[tuple[str, list[Any]]] = []
    for kind, (color, dash) in MARK_LOOKS.items():
        chosen = [mark for mark in marks if mark.kind == kind]
        if chosen:
            source = ColumnDataSource({"x": [mark.x for mark in chosen], "text": [mark.text for mark in chosen]}, name=kind)  # fmt: skip
            line = chart.vspan("x", source=source, line_color=color, line_dash=dash, line_width=1.4, name=kind)
            chart.add_tools(HoverTool(renderers=[line], tooltips=[(kind, "@text")]))
            entries.append((kind, [line]))
    return entries


def _add_legend(chart: Any, entries: list[tuple[str, list[Any]]], marks: Sequence[tuple[str, list[Any]]] = ()) -> None:
    """Above the plot, where it hides nothing; a click hides what it names. A single series needs none."""
    named = [(name, shown) for name, shown in entries if name]
    named = [*(named if len(named) > 1 else []), *marks]
    if not named:
        return
    look: dict[str, Any] = {
        "items": [LegendItem(label={"value": name}, renderers=shown) for name, shown in named],
        "orientation": "horizontal", "ncols": "auto", "click_policy": "hide", "border_line_color": None,
        "label_text_font_size": "12px", "padding": 2, "margin": 2, "spacing": 12,
    }  # fmt: skip
    chart.add_layout(Legend(**look), "above")


def _places(names: Sequence[float] | Sequence[str] | None, count: int) -> Floats:
    if names is None or isinstance(next(iter(names), 0), str):
        places = np.arange(count, dtype=np.float64)
    else:
        places = _floats(names)  # numbers, as its first says
    if len(places) != count or (names is not None and len(names) != count):
        raise ValueError(f"{len(names or ())} names or places of {count} rows or columns of a heat map")
    return places


def _extent(places: Floats) -> tuple[float, float]:
    """Start and width of an axis whose cells have their places in the middle."""
    step = float(places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else 1.0
    return float(places[0]) - step / 2, step * len(places)


def _mapper(cells: Any, diverging: bool, low: float | None, high: float | None) -> LinearColorMapper:
    finite = cells[np.isfinite(cells)]
    least, greatest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = least if low is None else low, greatest if high is None else high
    if diverging:
        high = max(abs(low), abs(high))
        low = -high
    if low == high:
        low, high = low - 0.5, high + 0.5
    palette = interp_palette(RdBu11, 255) if diverging else Cividis256
    return LinearColorMapper(palette=palette, low=low, high=high, nan_color=MISSING)


def _name_ticks(axis: Any, names: Sequence[float] | Sequence[str] | None) -> None:
    """Names of rows or columns, of at most 40 of them."""
    if names is None or not isinstance(next(iter(names), 0), str):
        return
    chosen = range(0, len(names), max(1, math.ceil(len(names) / 40)))
    axis.ticker = FixedTicker(ticks=list(chosen))
    axis.major_label_overrides = {place: str(names[place]) for place in chosen}
