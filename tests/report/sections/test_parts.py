"""Values as text, and maps of layers."""

import math
from pathlib import Path

import pytest

from megatron_compete.report.sections.parts import LONG, shortened, shown_value
from tests.report.made_pages import page_of, section
from tests.report.made_runs import scalar, write_events


@pytest.mark.parametrize(
    ("value", "text"), [(12345.678, "12,345.6780"), (0.01, "0.0100"), (0.001234567, "0.001235"), (math.nan, "nan")]
)
def test_values_keep_four_digits(value: float, text: str) -> None:
    assert shown_value(value) == text


def test_long_texts_are_cut() -> None:
    assert shortened("x" * LONG) == "x" * LONG
    assert shortened("x" * (LONG + 1)) == "x" * LONG + "…"


@pytest.mark.parametrize(("layers", "rows"), [((1, 2, 3), []), ((1, 2, 4), ["1", "2", "4"])])
def test_layers_that_are_not_evenly_spaced_are_rows_by_name(
    tmp_path: Path, layers: tuple[int, ...], rows: list[str]
) -> None:
    write_events(tmp_path / "tb", [scalar(f"moe/load-max/layer-{layer}", 1.0, step) for layer in layers for step in (1, 2)])  # fmt: skip
    (figure,) = section(page_of(tmp_path / "tb"), "Load of the experts").figures
    assert figure.title.text.startswith("By layer: tokens of the busiest expert")
    assert list(figure.yaxis[0].major_label_overrides.values()) == rows
