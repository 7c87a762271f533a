"""What a line or a row holds."""

import pytest

from megatron_compete.data.bad_documents import KINDS, BadDocument
from megatron_compete.data.inputs.lines import Raw
from megatron_compete.data.inputs.sources import Source
from megatron_compete.data.inputs.texts import parse_line, texts_of

BAD_LINES = [
    ("not_utf8", b'{"text": "\xff"}'),
    ("not_json", b'{"text": '),
    ("not_json", b"[" * 100_000),
    ("not_json", b'{"text": "a"} {"text": "b"}'),
    ("not_json", b'{"text": "line'),
    ("not_text", b'{"text": ' + b"9" * 5000 + b"}"),
    ("not_object", b'["text"]'),
    ("not_object", b"3"),
    ("missing_key", b'{"content": "a"}'),
    ("missing_key", b"{}"),
    ("not_text", b'{"text": null}'),
    ("not_text", b'{"text": 3}'),
    ("not_text", b'{"text": ["a", 3]}'),
    ("not_text", b'{"text": {"a": "b"}}'),
    ("lone_surrogate", b'{"text": "a\\ud800b"}'),
    ("lone_surrogate", b'{"text": ["fine", "\\udfff"]}'),
]


@pytest.mark.parametrize(("kind", "raw"), BAD_LINES)
def test_kinds_of_bad_lines(kind: str, raw: bytes) -> None:
    with pytest.raises(BadDocument) as caught:
        parse_line(raw, ["text"])
    assert caught.value.kind == kind
    assert kind in KINDS


def test_good_lines() -> None:
    assert parse_line(b'{"text": "a", "n": 1}\r\n', ["text"]) == {"text": "a"}
    assert parse_line(b'{"text": ["a", "", "b"], "title": ""}', ["title", "text"]) == {
        "title": "",
        "text": ["a", "", "b"],
    }
    assert parse_line('{"text": "\\ud83d\\ude42 é 🙂"}'.encode(), ["text"]) == {"text": "🙂 é 🙂"}


def test_what_python_reads_and_orjson_refuses() -> None:
    assert parse_line(b'{"text": "a", "score": NaN, "other": "\\ud800"}', ["text"]) == {"text": "a"}


def test_only_the_text_matters() -> None:
    """Integers beyond what Python converts, and the byte order mark of a file in the middle of a joined one."""
    assert parse_line(b'{"text": "a", "id": ' + b"9" * 4301 + b"}", ["text"]) == {"text": "a"}
    assert parse_line(b'\xef\xbb\xbf{"text": "a"}', ["text"]) == {"text": "a"}


def test_reasons_in_our_words() -> None:
    with pytest.raises(BadDocument, match=r"several values on the line, which jq -c \. puts on a line each"):
        parse_line('{"text": "é"}{"text": "b"}'.encode(), ["text"])
    with pytest.raises(BadDocument, match="nested too deep"):
        parse_line(b'{"a": ' * 50_000, ["text"])
    with pytest.raises(BadDocument, match="'a' is not UTF-8 at byte 1 of the value") as caught:
        texts_of(
            Source("p", "parquet", None, 1),
            Raw(1, 1, {"a": BadDocument("not_utf8", "not UTF-8 at byte 1 of the value")}),
            ["a"],
        )
    assert caught.value.kind == "not_utf8"


def test_rows_and_plain_text() -> None:
    parquet, text = Source("p", "parquet", None, 1), Source("t", "text", None, 1)
    assert texts_of(parquet, Raw(1, 1, {"a": "x", "b": ["y"]}), ["b", "a"]) == {"b": ["y"], "a": "x"}
    assert texts_of(text, Raw(0, 1, "é".encode()), ["text"]) == {"text": "é"}
    for source, content, kind in ((parquet, {"a": None}, "not_text"), (parquet, {"a": b"x"}, "not_text")):
        with pytest.raises(BadDocument) as caught:
            texts_of(source, Raw(1, 1, content), ["a"])
        assert caught.value.kind == kind
    with pytest.raises(BadDocument, match="byte 2 of the text"):
        texts_of(text, Raw(0, 1, b"a\xff"), ["text"])
