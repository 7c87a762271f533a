"""Pages as a browser shows them: `make test-pages`, in Debian's chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_compete.cluster.queue import Queue
from megatron_compete.report.charts import Mark, heat_map, lines, steps_or_bars, whiskers
from megatron_compete.report.page import Page, Section, Table, render, write_page
from megatron_compete.report.run import RunReader
from megatron_compete.report.run_page import run_page
from megatron_compete.report.server import LivePage
from tests.report.made_runs import EVIL, make_run, scalar, write_events
from tests.report.test_server import serving

pytestmark = pytest.mark.pages


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; without a sandbox, since tests may run as root."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium on PATH: apt-get install chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page in a tab, with what the browser complained of, and what it asked the network for."""

    def __init__(self, browser: Any, address: str) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page(viewport={"width": 1280, "height": 900})
        self.tab.on("console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text))  # fmt: skip
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(address, timeout=120_000)
        self.tab.locator("body[data-drawn]").wait_for(timeout=120_000)

    def sizes(self) -> list[tuple[float, float]]:
        """Width and height of what is drawn in each figure; a canvas lies in the shadow trees of Bokeh's elements."""
        return [
            (box["width"], box["height"])
            for figure in self.tab.locator(".figure").all()
            if (box := figure.locator("canvas").first.bounding_box())
        ]


def every_chart() -> Page:
    random = np.random.default_rng(0)
    steps = np.arange(1_000_000)
    loss = 10 * np.exp(-steps / 2e5) + random.normal(size=len(steps)) * 0.1 + 1
    loss[500_000:500_100] = np.nan
    marks = [Mark(2e5, "iteration 200000", "checkpoint"), Mark(4e5, EVIL, "failure")]
    figures = [
        lines({EVIL: (steps, loss), "b": (steps[::2], loss[::2])}, x_label="step", y_label="loss", title=EVIL, marks=marks),
        lines({"a": (steps, loss)}, x_label="step", y_label="loss", log=True, limits={"least": 1.0}),
        steps_or_bars({"a": (steps[:200], steps[:200] % 3)}, x_label="step", y_label="layers", limits={"A_max": 3}),
        steps_or_bars({"a": (steps, steps % 3), EVIL: (steps, steps % 2)}, x_label="step", y_label="layers"),
        heat_map(random.normal(size=(200, 512)), x="expert", y="layer", label="load", diverging=True),
        heat_map(np.full((4, 8), np.nan), x="expert", y="layer", label=EVIL, rows=[EVIL, "b", "c", "d"]),
    ]  # fmt: skip
    regret = ([0, 1], [0.1, 0.2], [0.05, -0.1], [0.2, 0.4])
    folded = [whiskers({EVIL: regret, "b": regret}, x_label="layer", y_label=label, title=label, apart=0.2) for label in ("regret", EVIL)]  # fmt: skip
    table = Table([EVIL, "value"], [[EVIL, 1.5]] * 30, EVIL)
    return Page(EVIL, [(EVIL, EVIL)], [Section(EVIL, EVIL, figures=figures), Section("folded", tables=[table], figures=folded, open=False)])  # fmt: skip


@pytest.fixture(scope="module")
def page_of_all(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = tmp_path_factory.mktemp("page") / "page.html"
    write_page(every_chart(), path)
    assert path.stat().st_size < 5_000_000
    return Opened(browser, f"file://{path}")


def test_every_chart_is_drawn_without_a_complaint(page_of_all: Opened) -> None:
    assert page_of_all.complaints == []
    assert len(page_of_all.requests) == 1, "the file itself"
    sizes = page_of_all.sizes()
    assert len(sizes) == 8 and all(width > 1000 and height > 150 for width, height in sizes), "folded ones too"


def test_no_text_has_run(page_of_all: Opened) -> None:
    assert page_of_all.tab.title() == EVIL
    assert page_of_all.tab.locator("img[src=x]").count() == 0


def test_it_fits_into_1280_pixels(page_of_all: Opened) -> None:
    assert page_of_all.tab.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_folded_section_shows_its_charts_when_it_is_opened(page_of_all: Opened) -> None:
    folded, chart = page_of_all.tab.locator("details.section").nth(1), page_of_all.tab.locator(".figure").nth(7)
    assert not chart.is_visible()
    folded.locator("summary").click()
    assert chart.is_visible()
    folded.locator("summary").click()


def test_on_paper_folded_sections_are_there_and_nothing_is_cut_off(page_of_all: Opened, tmp_path: Path) -> None:
    page_of_all.tab.emulate_media(media="print")
    assert page_of_all.tab.get_by_role("table").is_visible()
    page_of_all.tab.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    page_of_all.tab.emulate_media(media="screen")
    assert (tmp_path / "page.pdf").read_bytes().count(b"/Type /Page\n") >= 3


def test_a_runs_page_is_drawn_without_a_complaint(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings={"note": EVIL}, layers=3)
    path = tmp_path / "report.html"
    page = run_page(RunReader([run]).read(Queue(False, {})))
    write_page(page, path)
    opened = Opened(browser, f"file://{path}")
    assert opened.complaints == [] and opened.tab.title() == "run"
    assert len(opened.sizes()) == sum(len(section.figures) for section in page.sections) >= 15
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= 1280
    assert opened.tab.get_by_role("heading", name="Attempts, stops, failures, checkpoints").is_visible()


def test_a_served_page_takes_what_is_new_and_stays_as_it_was_read(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    reader = RunReader([run])
    live = LivePage(reader.version, lambda version: render(run_page(reader.read(Queue(False, {}))), version))
    with serving(live) as server:
        opened = Opened(browser, server.address)
        opened.tab.locator("summary").first.click()
        before = opened.tab.evaluate("document.body.dataset.version")
        write_events(run / "tensorboard", [scalar("lm loss", 1.54321, 41)], mode="ab")
        opened.tab.locator(f"body:not([data-version='{before}'])").wait_for(timeout=120_000)
        opened.tab.get_by_text("1.5432").first.wait_for(state="attached", timeout=60_000)
        assert opened.tab.locator("details.section").first.get_attribute("open") is None, "folded as before"
        opened.tab.wait_for_timeout(1000)
        assert opened.complaints == [] and len(opened.sizes()) >= 15
        assert {url.removeprefix(server.address) for url in opened.requests} <= {"", "version", "favicon.ico"}
        opened.tab.close()
