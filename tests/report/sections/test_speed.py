"""Speed, and what is needed for its share of the peak."""

from pathlib import Path

from tests.report.made_pages import missing, page_of, section, titles
from tests.report.made_runs import scalar, write_events


def test_a_share_of_the_peak_needs_the_peak(tmp_path: Path) -> None:
    write_events(tmp_path / "tb", [scalar("throughput", 250.0, step) for step in (1, 2)])
    page = page_of(tmp_path / "tb")
    assert "MFU: --peak-tflops" in missing(page) and "Operations per second" in titles(page)
    page = page_of(tmp_path / "tb", peak_tflops=1000)
    (figure,) = section(page, "Speed").figures
    assert "MFU" in figure.title.text and figure.renderers[0].data_source.data["y"].tolist() == [25, 25]
