"""Object storage is refused by name, whatever holds it; local paths pass."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.local_paths import check_local


@pytest.mark.parametrize("value", ["s3://bucket/x", "MSC://profile/x", Path("gs://bucket/x"), ["local", "az://x/y"]])
def test_object_storage_is_refused_with_a_way_out(value: object) -> None:
    with pytest.raises(CompeteError, match=r"^--save \S+: object storage is not read or written here.*mount it"):
        check_local("--save", value)


@pytest.mark.parametrize("value", ["/data/s3/x", "runs/a", None, 5, ["a", Path("b")], "bucket s3://x"])
def test_local_paths_pass(value: object) -> None:
    check_local("--save", value)
