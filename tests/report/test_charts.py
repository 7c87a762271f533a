"""What the charts are given to draw."""

import math

import numpy as np
import pytest
from bokeh.models import GlyphRenderer, ImageURL

from megatron_compete.report.charts import (
    COLUMNS,
    POINTS,
    ROWS,
    Mark,
    beside,
    heat_map,
    lines,
    steps_or_bars,
    whiskers,
)


def source(chart, name: str) -> dict[str, np.ndarray]:
    """Data of the renderer whose source has a name."""
    (found,) = {r.data_source.id: r.data_source for r in renderers(chart) if r.data_source.name == name}.values()
    return {column: np.asarray(values) for column, values in found.data.items()}


def renderers(chart) -> list[GlyphRenderer]:
    return [r for r in chart.renderers if isinstance(r, GlyphRenderer)]


def test_a_million_points_are_a_few_thousand_with_all_extremes() -> None:
    y = np.sin(np.arange(1_000_000) / 1e5)
    y[123_456] = 9.0
    chart = lines({"a": (np.arange(1_000_000), y)}, x_label="step", y_label="loss")
    shown = source(chart, "a")
    assert len(shown["x"]) <= POINTS + 2 and shown["y"].max() == 9.0 and shown["y"].dtype == np.float32


def test_what_is_not_finite_is_a_gap_with_a_cross_where_it_begins() -> None:
    chart = lines({"a": ([1, 2, 3, 4, 5], [5.0, math.nan, math.inf, 2.0, -math.inf])}, x_label="step", y_label="loss")
    assert np.isnan(source(chart, "a")["y"]).tolist() == [False, True, True, False, True]
    crosses = source(chart, "a: not finite")
    assert crosses["x"].tolist() == [2, 5] and crosses["y"].tolist() == [5, 2] and crosses["value"].tolist() == ["nan", "-inf"]  # fmt: skip


@pytest.mark.parametrize("y", [[math.nan] * 3, [-1.0, 0.0, math.nan]])
def test_a_logarithmic_axis_takes_series_without_a_positive_value(y: list[float]) -> None:
    chart = lines({"a": ([1, 2, 3], y)}, x_label="step", y_label="loss", log=True)
    assert np.isnan(source(chart, "a")["y"]).all() and source(chart, "a: not finite")["y"].tolist() == [1.0]


def test_marks_and_series_are_in_the_legend() -> None:
    marks = [
        Mark(3, "iteration 3", "checkpoint"),
        Mark(4, "node died", "failure"),
        Mark(9, "iteration 9", "checkpoint"),
    ]
    chart = lines({"a": ([1, 2], [1, 2]), "b": ([1], [2])}, x_label="step", y_label="loss", marks=marks)
    assert [item.label.value for item in chart.legend[0].items] == ["a", "b", "checkpoint", "failure"]
    assert source(chart, "checkpoint")["x"].tolist() == [3, 9] and source(chart, "failure")["text"].tolist() == ["node died"]  # fmt: skip


def test_one_series_without_marks_has_no_legend() -> None:
    assert not lines({"a": ([1, 2], [1, 2])}, x_label="step", y_label="loss").legend


def test_series_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' has 2 x and 1 y"):
        lines({"a": ([1, 2], [1])}, x_label="step", y_label="loss")


def test_few_counts_are_bars_and_many_are_windows() -> None:
    few = steps_or_bars({"a": ([10, 20, 30], [1, 0, 2])}, x_label="step", y_label="layers", limits={"A_max": 3})
    assert source(few, "a")["top"].tolist() == [1, 0, 2]
    many = source(steps_or_bars({"a": (np.arange(5000), np.arange(5000) % 2)}, x_label="", y_label=""), "a")
    assert len(many["x"]) <= 400 and set(many["least"]) == {0} and set(many["greatest"]) == {1}


def test_a_heat_map_of_200_layers_and_many_steps_is_block_means() -> None:
    chart = heat_map(np.ones((300, 5000)), x="step", y="layer", label="load", columns=np.arange(5000) * 10.0)
    (image,) = (r for r in renderers(chart) if not isinstance(r.glyph, ImageURL))
    (cells,) = image.data_source.data["image"]
    assert cells.shape == (ROWS, COLUMNS) and (cells == 1).all()
    assert (image.glyph.x, image.glyph.dw) == (-5.0, 50000.0) and (image.glyph.y, image.glyph.dh) == (-0.5, 300.0)


def test_a_diverging_heat_map_has_its_middle_at_zero() -> None:
    chart = heat_map([[1.0, -3.0, math.nan]], x="", y="", label="", diverging=True)
    mapper = renderers(chart)[0].glyph.color_mapper
    assert (mapper.low, mapper.high) == (-3, 3)


def test_a_heat_map_names_its_rows_and_refuses_other_numbers_of_names() -> None:
    chart = heat_map(np.zeros((2, 2)), x="", y="", label="", rows=["one", "two"])
    assert chart.yaxis[0].major_label_overrides == {0: "one", 1: "two"}
    with pytest.raises(ValueError, match="1 names or places of 2"):
        heat_map(np.zeros((2, 2)), x="", y="", label="", rows=["one"])
    with pytest.raises(ValueError, match="rows x columns"):
        heat_map(np.zeros((0, 2)), x="", y="", label="")


def test_whiskers_stand_apart_and_leave_out_what_is_not_finite() -> None:
    series = {"a": ([3, 4], [1.0, 2.0], [0.5, math.nan], [1.5, 3.0]), "b": ([3], [1.0], [0.0], [2.0])}
    chart = whiskers(series, x_label="layer", y_label="regret", apart=0.2)
    first, second = source(chart, "a"), source(chart, "b")
    assert first["x"].tolist() == [3] and first["low"].tolist() == [0.5] and first["high"].tolist() == [1.5]
    np.testing.assert_allclose([first["shown"][0], second["shown"][0]], [2.9, 3.1])
    assert [item.label.value for item in chart.legend[0].items] == ["a", "b"]


def test_charts_stand_beside_each_other_in_rows() -> None:
    charts = [lines({"a": ([number], [1.0])}, x_label="", y_label="") for number in range(3)]
    assert [row.children for row in beside(*charts)] == [charts[:2], charts[2:]]
