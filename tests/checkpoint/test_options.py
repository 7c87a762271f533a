"""What conversions are told."""

from pathlib import Path
from typing import Any, get_args

import pytest

from megatron_compete.checkpoint.families import FAMILIES
from megatron_compete.checkpoint.options import Export, FamilyName, Import, parse_size
from megatron_compete.common.errors import CompeteError


def test_every_family_can_be_named() -> None:
    assert get_args(FamilyName) == tuple(FAMILIES)


@pytest.mark.parametrize(
    ("options", "wrong", "message"),
    [
        (Export, {"dtype": "fp32"}, "--dtype fp32 is out of range: choose from float32, bfloat16, float16"),
        (Export, {"family": "gpt"}, "--family gpt is out of range: choose from mixtral, "),
        (Import, {"source": "jax"}, "--from jax is out of range: choose from hf, megatron"),
        (Import, {"source": "megatron", "drop_mtp": True}, "--drop-mtp .* goes with --from hf"),
        (Import, {"file_bytes": "4GB"}, "--max-file-size 4GB is out of range: give a whole number"),
    ],
)
def test_python_callers_get_the_commands_errors(options: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CompeteError, match=message):
        options(Path("a"), Path("b"), **wrong)


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("2GiB", 2**31), ("100", 100), ("3 mb", 3 * 10**6)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1.5GB", "-1", "0", "5 apples"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(CompeteError, match="--max-shard-size"):
        parse_size(text)
