import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations import json_index
from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.conversations.json_index import index_json

TEXT = st.text(st.sampled_from('"\\{}[],:\n é😀a'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=6)


def read_all(path: Path) -> list[Any]:
    index = index_json(str(path))
    return [index.read(number) for number in range(len(index))]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=OBJECTS, indent=st.sampled_from([None, 1]), ascii=st.booleans(), block=st.integers(1, 40))
def test_an_array_in_any_block_size(
    records: list[Any], indent: int | None, ascii: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks end within strings, escapes and characters."""
    monkeypatch.setattr(json_index, "BLOCK_BYTES", block)
    path = tmp_path / "array.json"
    path.write_text(" " + json.dumps(records, indent=indent, ensure_ascii=ascii) + "\n\n", encoding="utf-8")
    assert read_all(path) == records


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=OBJECTS.filter(bool),
    newline=st.sampled_from(["\n", "\r\n", "\n \n"]),
    last=st.booleans(),
    block=st.integers(1, 40),
)
def test_lines(
    records: list[Any], newline: str, last: bool, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_index, "BLOCK_BYTES", block)
    path = tmp_path / "lines.jsonl"
    path.write_bytes((newline.join(map(json.dumps, records)) + newline * last).encode("utf-8-sig"))
    assert read_all(path) == records


def test_a_large_array_is_cut_where_the_parser_does(tmp_path: Path) -> None:
    """Several blocks of the real size."""
    draw = random.Random(0)
    records = [{"id": n, "text": draw.choice(['"[\\', "}{", "é\\\\"]) * draw.randrange(400)} for n in range(12_000)]
    path = tmp_path / "large.json"
    path.write_text(json.dumps(records, indent=1))
    assert path.stat().st_size > 2 * json_index.BLOCK_BYTES
    assert read_all(path) == records


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"a": 1}\n{"a": 2}]', ":2: b'{\"a\": 2}]' before sample 1 of the array: correct the file"),
        ('[{"a": 1},\n]', ":1: b',\\n]' at the end of the array"),
        ('[{"a": 1}], {}', ":1: b', {}' after the end of the array"),
        ('[{"a": 1}} ', ":1: b'}' at the end of the array"),
        ('[{"a": 1},\n 7,\n {}]', ":1: b',\\n 7,\\n {}]' before sample 1"),
        (
            '[{"a": 1},\n{"a": [1, 2}]',
            ":2: the array does not end, and what begins here is no sample (Expecting ',' delimiter",
        ),
        (
            '[{"a": 1},\n{"a": "cut o',
            ":2: the array does not end, and what begins here is no sample (Unterminated string",
        ),
        ('[{"a": 1},\n{"a": 2}', ": the array does not end: put a ] there"),
        ("[", ": the array does not end"),
        ('{\n  "id": 1\n}', " is an object over several lines: write it as an array"),
        ("id,image\n", " begins with b'id,image\\n': give a JSON array of samples or an object a line"),
        ("", " is empty: give a JSON array"),
        (
            "version https://git-lfs.github.com/spec/v1\n",
            " is a Git LFS pointer and not the file: get that with git lfs pull",
        ),
        (b"\x1f\x8b\x08\x00", " is compressed (gz), and samples are read in any order: decompress it"),
    ],
)
def test_what_is_no_list_of_samples(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CompeteError) as error:
        index_json(str(path))
    assert str(error.value).startswith(f"{path}{message}")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match=r"none.json cannot be read: No such file or directory"):
        index_json(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[{"a": 1},\n {"a": 2,\n  "b": 01},\n {"a": 3}]', "line 3, column 8: number"),
        ('{"a": 1}\n{"é": nul}\n{"a": 3}\n', "line 2, column 7: invalid literal"),
    ],
)
def test_a_bad_sample_has_its_place_and_others_are_read(text: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    index = index_json(str(path))
    assert (index.read(0), index.read(2)) == ({"a": 1}, {"a": 3})
    with pytest.raises(BadSample, match=place) as bad:
        index.read(1)
    assert bad.value.kind == "not_json"
