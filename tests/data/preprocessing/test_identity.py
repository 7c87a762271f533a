"""What makes two runs the same job, and what is said where they are not."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.inputs import find_sources
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocessing.identity import digest, dropped_keys, identity_of, refuse_difference
from megatron_compete.data.preprocessing.job import Preprocessing
from tests.data.inputs.files import write_jsonl

CHOICE = TokenizerChoice("NullTokenizer", vocab_size=100)


def identity(path: Path, shard_bytes: int = 1_000_000, **changes: Any) -> dict[str, Any]:
    job = Preprocessing((str(path),), "out", CHOICE, json_keys=("a", "b"))
    return identity_of(dataclasses.replace(job, **changes), find_sources([str(path)]), shard_bytes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", [{"a": "1", "b": "2"}] * 3)


def test_what_changes_no_byte_is_no_part_of_it(path: Path) -> None:
    assert digest(identity(path)) == digest(identity(path, on_error="skip", output_prefix="elsewhere"))


def test_the_first_difference_is_named(path: Path) -> None:
    before = identity(path)
    refuse_difference(before, before, "out.work")
    for changes, says in (
        ({"append_eod": True}, "--append-eod changed (False then, True now)"),
        ({"shard_bytes": 2_000_000}, "--shard-size changed (1.0 then, 2.0 now)"),
        ({"tokenizer": TokenizerChoice("NullTokenizer", vocab_size=50)}, "--vocab-size changed (100 then, 50 now)"),
    ):
        after = identity(path, **changes)  # type: ignore[arg-type]
        assert digest(after) != digest(before)
        with pytest.raises(CompeteError) as error:
            refuse_difference(before, after, "out.work")
        assert f"since then {says}: give the same command as then, or --restart" in str(error.value)


def test_an_input_that_changed_is_named(path: Path) -> None:
    before, time = identity(path), os.stat(path).st_mtime_ns
    content = path.read_bytes()
    path.write_bytes(content.replace(b"2", b"3"))
    os.utime(path, ns=(time, time))  # as tools that keep times do
    with pytest.raises(CompeteError, match=r"the content of input \S+a\.jsonl changed"):
        refuse_difference(before, identity(path), "out.work")
    path.write_bytes(content * 2)
    with pytest.raises(CompeteError, match="the size of input"):
        refuse_difference(before, identity(path), "out.work")
    other = path.rename(path.with_name("b.jsonl"))
    with pytest.raises(CompeteError, match=r"input \S+a\.jsonl is no longer among the inputs"):
        refuse_difference(before, identity(other), "out.work")


def test_fewer_keys_of_the_same_job_are_seen(path: Path) -> None:
    before = identity(path)
    assert dropped_keys(before, identity(path, json_keys=("b",))) == ["a"]
    assert dropped_keys(before, identity(path, json_keys=("b",), append_eod=True)) == []
    assert dropped_keys(identity(path, json_keys=("b",)), before) == []
