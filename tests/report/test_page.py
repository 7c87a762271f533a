"""A page is one file that lets nothing run but its own two scripts."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.report.charts import lines
from megatron_compete.report.page import Page, Section, Table, render, write_page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"


class Elements(HTMLParser):
    """Elements of a page with their attributes, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script" and not self.scripts[-1]:
            self.scripts[-1] = data
        else:
            self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(title: str = "run", **more) -> Page:
    figure = lines({title: ([1, 2], [3.0, 4.0])}, x_label="step", y_label="loss", title=title)
    return Page(title, [("state", title)], [Section(title, f"{title}\n\nmore", [Table([title], [[title], [1.5]], title)], [figure], **more)])  # fmt: skip


def test_only_the_scripts_whose_hashes_the_policy_names_are_there() -> None:
    parsed = Elements(render(page()))
    (policy,) = (m["content"] for m in parsed.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    kinds = [attributes.get("type") for attributes in parsed.named("script")]
    assert kinds == ["application/json", None, None]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in parsed.scripts[1:]]
    assert policy is not None and re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy and "unsafe-eval" not in policy


def test_nothing_is_loaded_from_elsewhere() -> None:
    for tag, attributes in Elements(render(page())).elements:
        assert not {"src", "href", "action", "data"} & set(attributes), tag


def test_texts_are_texts_wherever_they_stand() -> None:
    text = render(page(EVIL))
    parsed = Elements(text)
    assert len(parsed.named("script")) == 3 and not parsed.named("img")
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    shown = "".join(parsed.texts)
    assert shown.count(EVIL) == 8, "title and heading, summary, the section's title and text, header, cell and caption"
    data = json.loads(parsed.scripts[0])
    assert EVIL in json.dumps(data, ensure_ascii=False).replace('\\"', '"') and "<" not in parsed.scripts[0]
    assert parsed.named("details")[0]["data-title"] == EVIL
    assert html.escape("<img") in text


def test_data_name_each_figure_and_its_place() -> None:
    parsed = Elements(render(page()))
    data = json.loads(parsed.scripts[0])
    assert len(data["figures"]) == 1 and [d["id"] for d in parsed.named("div") if d.get("class") == "figure"] == ["figure-0"]  # fmt: skip
    assert [root["id"] for root in data["document"]["roots"]] == data["figures"]


def test_a_page_can_be_rendered_again() -> None:
    one = page()
    assert len(render(one)) == len(render(one))


def test_sections_are_open_or_folded_and_numbers_stand_to_the_right() -> None:
    parsed = Elements(render(page(open=False)))
    assert "open" not in parsed.named("details")[0] and "open" in Elements(render(page())).named("details")[0]
    assert [cell.get("class") for cell in parsed.named("td")] == [None, "number"]


def test_a_served_page_may_ask_its_own_server_alone() -> None:
    text = render(page(), version="7")
    assert "connect-src &#39;self&#39;" in text and 'data-version="7"' in text and 'id="follow"' in text


def test_a_page_is_written_whole_or_refused(tmp_path: Path) -> None:
    write_page(page(), tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    (tmp_path / "file").touch()
    with pytest.raises(CompeteError, match="cannot be written"):
        write_page(page(), tmp_path / "file" / "report.html")
