"""The loss, also where it is not finite."""

import math
from pathlib import Path

from megatron_compete.report.page import render
from tests.report.made_pages import page_of, section
from tests.report.made_runs import scalar, write_events


def test_a_loss_that_is_nan_is_said_and_drawn_as_a_gap(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [scalar("lm loss", math.nan if 3 <= step < 6 else 2.0, step) for step in range(1, 9)])
    page = page_of(tmp_path / "tb")
    assert dict(page.summary)["loss not finite"] == "at 3 logged steps, first 3"
    names = [renderer.data_source.name for renderer in section(page, "Loss").figures[0].renderers]
    assert any(name.endswith("not finite") for name in names)
    write_events(tmp_path / "nan", [scalar("lm loss", math.nan, step) for step in range(1, 9)])
    assert dict(page_of(tmp_path / "nan").summary)["loss"] == "nan"
    render(page_of(tmp_path / "nan"))
