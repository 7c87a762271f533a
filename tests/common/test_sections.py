"""Sections of YAML files: what is taken, and errors of one line with the place."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.sections import Count, Names, Number, Section, Seeds, Word, read_section
from megatron_compete.common.yaml_file import YamlFile


class Inner(Section):
    share: Number = 0.5
    time: Word | None = None


class Outer(Section):
    most_jobs: Count
    inner: Inner = Inner()
    seeds: Seeds = (1,)
    names: Names = ()


def read(folder: Path, text: str) -> Outer:
    path = folder / "file.yaml"
    path.write_text(text)
    file = YamlFile(path, "--file")
    return read_section(file, Outer, file.content)


def test_keys_have_dashes_and_what_is_empty_has_its_default(tmp_path: Path) -> None:
    found = read(tmp_path, "most-jobs: 3\ninner:\nseeds:\nnames: [a, b]\n")
    assert found == Outer(most_jobs=3, names=("a", "b")) and found.inner.share == 0.5
    assert read(tmp_path, "most-jobs: 3\ninner: {share: 1, time: 20}").inner == Inner(share=1.0, time="20")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("most_jobs: 3", "1: most_jobs is no key here (did you mean most-jobs?): known are most-jobs, inner, seeds, names"),
        ("inner:\n  shar: 3", "2: inner.shar is no key here (did you mean share?): known are share, time"),
        ("inner: {}", "1: most-jobs is missing"),
        ("most-jobs: true", "1: most-jobs is True: give a valid integer"),
        ("most-jobs: '3'", "1: most-jobs is '3': give a valid integer"),
        ("most-jobs: 1\ninner: {share: true}", "2: inner.share is True: give a number"),
        ("most-jobs: 1\ninner:\n  share: -1", "3: inner.share is -1: give at least 0"),
        ("most-jobs: 1\ninner: [a]", "2: inner is a list, not a mapping"),
        ("most-jobs: 1\nseeds: []", "2: seeds is []: "),
        ("most-jobs: 1\nnames: [a, a]", "2: names is ['a', 'a']: name each one once"),
        ("[1]", "1: the file is a list, not a mapping"),
    ],
)  # fmt: skip
def test_a_mistake_has_its_line_and_a_way_out(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(CompeteError) as refusal:
        read(tmp_path, text)
    assert f"--file {tmp_path}/file.yaml:{says}" in str(refusal.value) and "\n" not in str(refusal.value)
