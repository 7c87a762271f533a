"""What is made of a user's YAML, and what is refused with file and line."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.yaml_file import MOST_VALUES, YamlFile, dump_yaml


def read(tmp_path: Path, text: str | bytes) -> YamlFile:
    path = tmp_path / "file.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return YamlFile(path, "--recipe")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:00:00", "12:00:00"), ("1:30", "1:30"), ("010", "010"), ("0x10", "0x10"), ("0o17", "0o17"), ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"), (".inf", ".inf"), (".nan", ".nan"), ("=", "="), ("y", "y"), ("'on'", "on"),
        ("12", 12), ("-0", 0), ("+5", 5), ("9" * 30, "9" * 30), ("1e-4", 1e-4), ("2.5e-4", 2.5e-4), ("1.", 1.0), ("-.5", -0.5),
        ("1.5E3", 1500.0), ("true", True), ("False", False), ("~", None), ("", None), ("null", None),
        ("'12'", "12"), ("!!str 12", "12"), ("\ufeffa", "a"),
    ],
)  # fmt: skip
def test_values_are_what_is_written(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, text).content
    assert found == value and type(found) is type(value)
    assert read(tmp_path, dump_yaml({"a": value})).content == {"a": value}


@pytest.mark.parametrize(
    "value", ["1e5", "1.5e3", "12:00:00", "yes", "010", "1_000", "+5", "", "a: b", "2026-01-01", "9" * 30, 1e-5]
)
def test_what_is_written_is_read_again(tmp_path: Path, value: object) -> None:
    assert read(tmp_path, dump_yaml({"a": [value], "b": {"c": value}})).content == {"a": [value], "b": {"c": value}}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (b"a: 1\nb: \xff\n", 2, "is not UTF-8"),
        ("a: 1\r\nb: \u0000\r\n", 2, "U+0000"),
        ("a: 1\nb: 2\na: 3\n", 3, "a is given twice"),
        ("a: {b: 1,\n b: 2}\n", 2, "b is given twice"),
        ("a: 1\nb: yes\n", 2, "yes is true or false to some"),
        ("a: 1\nOff: 1\n", 2, "Off is true or false to some"),
        ("a: 1\n2: b\n", 2, "the key 2 is no text"),
        ("? [a]\n: b\n", 1, "is no text"),
        ("a: [1\nb: 2\n", 2, "is not YAML"),
        ("a: b: c\n", 1, "mapping values are not allowed here"),
        ("a: !!python/object:os.system x\n", 1, "the tag tag:yaml.org,2002:python/object:os.system is not known"),
        ("a: !!binary x\n", 1, "is not known"),
        ("a: !!int 12:00\n", 1, "12:00 is no int"),
        ("a: !!float x\n", 1, "x is no number"),
        ("a: !!bool perhaps\n", 1, "is no bool"),
        ("a: 1.0e999\n", 1, "is no number that can be used"),
        ('a: "\\0"\n', 1, "a character that no argument can have"),
        ('a: "\\ud800"\n', 1, "a character that no argument can have"),
        ("a: 1\nb: &x [*x]\n", 2, "a part of"),
        ("a: 1\n---\nb: 2\n", 2, "is not YAML"),
        ("a: *b\n", 1, "undefined alias"),
    ],
)  # fmt: skip
def test_surprises_are_one_line_with_the_place(tmp_path: Path, text: str | bytes, line: int, says: str) -> None:
    with pytest.raises(CompeteError) as error:
        read(tmp_path, text)
    assert f"--recipe {tmp_path}/file.yaml:{line}: " in str(error.value) and says in str(error.value)


def test_depth_and_aliases_have_bounds(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="nested too deeply"):
        read(tmp_path, "[" * 5000)
    bomb = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    with pytest.raises(CompeteError, match=f"stand for more than {MOST_VALUES} values"):
        read(tmp_path, bomb)


def test_merges_override_and_chain(tmp_path: Path) -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {<<: *b, x: 3}\nd: {e: &e {<<: *a, x: 4}, <<: *e}\n"
    content = read(tmp_path, text).content
    assert content["b"] == {"x": 1, "y": 2} and content["c"] == {"x": 3, "y": 2}
    assert content["d"] == {"x": 4, "y": 1, "e": {"x": 4, "y": 1}}


def test_errors_of_readers_have_lines(tmp_path: Path) -> None:
    file = read(tmp_path, "a:\n  b: 1\n  c: {d: 2}\n")
    for keys, line in (((), 1), (("a",), 1), (("a", "c"), 3), (("a", "c", "gone"), 3), (("gone",), 1)):
        with pytest.raises(CompeteError, match=f"file.yaml:{line}: no"):
            file.fail("no", *keys)
    with pytest.raises(CompeteError, match=r"file.yaml:2: a\.b is a number, not a mapping"):
        file.section(1, "a", "b")
