"""Values as text, and maps of layers."""

import math
from pathlib import Path

import pytest

from megatron_compete.report.sections.parts import LONG, shortened, shown_value
from tests.report.made_pages import page_of, section
from tests.report.made_runs import make_run, scalar, write_events


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


VISION = {"vision-model-type": "siglip", "vision-num-layers": 2, "num-layers": 4}


def test_layers_of_a_vision_language_model_are_named_by_their_part(tmp_path: Path) -> None:
    """Layers 1 and 2 are the tower's, 3 the projector: evenly spaced or not, each row says what it is."""
    page = page_of(make_run(tmp_path / "run", layers=4, settings=VISION))
    names = ["tower 1", "tower 2", "projector", "decoder 1"]
    maps = [
        figure for figure in section(page, "Load of the experts").figures if "layer" in str(figure.yaxis[0].axis_label)
    ]
    assert len(maps) == 2
    assert all(list(figure.yaxis[0].major_label_overrides.values()) == names for figure in maps)
    (table,) = section(page, "Load of the experts").tables
    assert [row[0] for row in table.rows] == ["tower 2"]
    assert dict(page.summary)["model"] == "siglip tower of 2 layers, projector, decoder of 4 layers"
