"""A page: one HTML file that works offline and on paper, of sections with texts, tables and charts.

Everything is in the file: Bokeh's script, the styles, the data. Data are JSON that no browser runs, texts are escaped, and
the page's Content-Security-Policy lets only the two scripts run that are written here (by their hashes) and loads nothing.
So names and log lines of a run may hold what they like.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_compete import __version__
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole

if TYPE_CHECKING:
    from bokeh.models import LayoutDOM
    from jinja2 import Template


@dataclass(frozen=True)
class Table:
    """Rows under a header; numbers are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page that can be folded."""

    title: str
    text: str = ""
    """Paragraphs, with an empty line between them."""
    tables: Sequence[Table] = ()
    figures: Sequence["LayoutDOM"] = ()
    """Of `charts.py`, each in one place of one page."""
    open: bool = True


@dataclass(frozen=True)
class Page:
    """What is on it."""

    title: str
    summary: Sequence[tuple[str, str]]
    """Names and values on top."""
    sections: Sequence[Section] = field(default_factory=tuple)


def write_page(page: Page, path: Path, mode: int | None = None) -> None:
    """Write a page so that readers see the old file or the new one; makes its folder.

    Args:
        mode: permissions, such as 0o600; default what the process gives to new files.
    Raises:
        CompeteError: it cannot be written, or the packages of the extra `report` are missing.
    """
    html = render(page)
    try:
        write_whole(path, html, mode)
    except OSError as error:
        raise CompeteError(f"{path} cannot be written: {error.strerror}") from None


def render(page: Page, version: str = "") -> str:
    """The page as HTML.

    Args:
        version: of a page that is served: it asks its server for the present version, and takes what is new where that
            is another.
    Raises:
        CompeteError: the packages of the extra `report` are missing.
    """
    template, library = _template(), _library()
    script = _resource("page.js")
    sources = " ".join(f"'sha256-{_sha256(text)}'" for text in (library, script))
    policy = (
        f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {"'self'" if version else "'none'"}; base-uri 'none'; form-action 'none'"
    )
    figures = [figure for section in page.sections for figure in section.figures]
    return template.render(
        page=page, policy=policy, library=library, script=script, style=stylesheet(), version=version,
        data=_data(figures), program=f"megatron-compete {__version__}", paragraphs=_paragraphs, is_number=_is_number,
        label=_label,
    )  # fmt: skip


def stylesheet() -> str:
    """CSS of all pages, for those that are not made of sections."""
    return _resource("page.css")


def _data(figures: Sequence["LayoutDOM"]) -> str:
    """The figures as JSON that may stand in a script element: Bokeh's document, and which figure is which."""
    from bokeh.document import Document

    document = Document()
    try:
        with document.models.freeze():  # which models there are is found once, not for each figure
            for figure in figures:
                document.add_root(figure)
        content = {"document": document.to_json(deferred=False), "figures": [figure.id for figure in figures]}
        text = json.dumps(content, default=_plain, separators=(",", ":"))
    finally:
        document.clear()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> str:
    """Bytes of an array as Bokeh's script reads them."""
    from bokeh.core.serialization import Buffer

    if isinstance(value, Buffer):
        return value.to_base64()
    raise TypeError(f"{type(value)} in a figure")


@cache
def _library() -> str:
    """Bokeh's script, from its wheel. Without its source map's address, at which browsers would look."""
    try:
        from bokeh.resources import Resources
    except ImportError as error:
        raise CompeteError(f"pages need Bokeh ({error}): pip install 'megatron-compete[report]'") from None
    scripts = Resources(mode="inline", components=["bokeh"], minified=True).js_raw
    return "\n".join(scripts).replace("</script", "<\\/script")


@cache
def _template() -> "Template":
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise CompeteError(f"pages need Jinja2 ({error}): pip install 'megatron-compete[report]'") from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_resource("page.html"))


@cache
def _resource(name: str) -> str:
    return resources.files("megatron_compete.report").joinpath(name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _is_number(value: object) -> bool:
    """Whether a cell is set to the right: a number, or a text that begins as one."""
    if isinstance(value, int | float):
        return True
    text = str(value).strip().lstrip("+-−±")
    return text[:1].isdigit() and len(text) <= 24


def _label(figure: "LayoutDOM") -> str:
    """What a figure shows, for those who do not see it."""
    title = getattr(getattr(figure, "title", None), "text", None)
    axes = [axis.axis_label for axis in getattr(figure, "yaxis", []) if axis.axis_label]
    return str(title or " and ".join(map(str, axes)) or "figure")
