"""JSON of other layouts than an object a line is refused with the command that converts it, and that command is right."""

import gzip
import json
import subprocess
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.inputs import find_sources
from megatron_compete.data.inputs.json_layout import refuse_other_layout

ROWS = [{"text": f"row {number}", "tags": {"a": [number]}} for number in range(5)]
LINES = [json.dumps(row) for row in ROWS]
OTHERS = {
    "a JSON array": ["[" + ",\n".join(LINES) + "]\n", "[" + ",".join(LINES) + "]", json.dumps(ROWS, indent=1)],
    "pretty-printed JSON": [
        "\ufeff" + "".join(json.dumps(row, indent=2) + "\n" for row in ROWS),
        "\n".join(line.replace(", ", ",\n ", 1) for line in LINES),
    ],
    "JSON with several objects on a line": ["".join(LINES), LINES[0] + " " + "\n".join(LINES[1:])],
    "JSON with a comma after each object": ["".join(line + ",\n" for line in LINES), ", \r\n".join(LINES)],
    "JSON with carriage returns between objects": ["\r".join(LINES), "".join(line + "\r" for line in LINES)],
}


@pytest.mark.parametrize(("what", "content"), [(what, content) for what in OTHERS for content in OTHERS[what]])
def test_other_layouts_name_the_command(what: str, content: str) -> None:
    with pytest.raises(
        CompeteError, match=rf"--input 'a b'\.json|--input a b\.json is {what} and not an object a line"
    ):
        refuse_other_layout("a b.json", None, content.encode())


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES),
        "\r\n".join(LINES),
        "\n\n  " + LINES[0] + "\n",
        '{"text": ["a",  "b"]}',
        "[]\n[]",
        '["a"]\n["b"]',
        "",
        "{",
        "{\nnothing",
        '{"text": "cut off',
        "3\n" + LINES[0],
        '{"a": ' * 5000,
        '{"n": ' + "9" * 5000 + "}\n" + LINES[0],
        LINES[0] + "\r",
    ],
)
def test_lines_and_what_nobody_knows_pass(content: str) -> None:
    refuse_other_layout("a.json", None, content.encode())


@pytest.mark.parametrize("what", ["JSON with a comma after each object", "JSON with carriage returns between objects"])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_command_makes_lines_of_it(what: str, compressed: bool, tmp_path: Path) -> None:
    """Those of jq are the same command each, and jq is not everywhere."""
    path = tmp_path / ("it's.json" + ".gz" * compressed)
    for content in OTHERS[what]:
        path.write_bytes(gzip.compress(content.encode()) if compressed else content.encode())
        with pytest.raises(CompeteError) as caught:
            find_sources([str(path)])
        command = str(caught.value).partition("convert it with ")[2].replace("NEW.jsonl", "-")
        subprocess.run(command.replace("> -", "> NEW.jsonl"), shell=True, cwd=tmp_path, check=True)
        lines = (tmp_path / "NEW.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines if line] == ROWS
