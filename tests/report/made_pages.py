"""Pages of made runs, and what is in them."""

from pathlib import Path

from megatron_compete.cluster.queue import Queue
from megatron_compete.report.page import Page, Section
from megatron_compete.report.run import RunReader, find_runs
from megatron_compete.report.run_page import run_page


def page_of(*folders: Path, **more) -> Page:
    return run_page(RunReader(find_runs(folders)).read(Queue(False, {})), **more)


def section(page: Page, title: str) -> Section:
    return next(section for section in page.sections if section.title == title)


def missing(page: Page) -> str:
    found = [one for one in page.sections if one.title == "What is missing"]
    return "\n".join(str(row[0]) for one in found for row in one.tables[0].rows)


def titles(page: Page) -> list[str]:
    return [figure.title.text for one in page.sections for figure in one.figures]
