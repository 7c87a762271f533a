"""Object storage is refused by name, before anything makes a folder `msc:` of it."""

import argparse
from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.plan.job import read_job
from megatron_compete.training.local_paths import check_local_paths
from tests.plan.jobs import recipe_of


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--enable-msc --save msc://store/run --save-interval 1", "--enable-msc: this trainer takes checkpoints and data for local"),
        ("--save msc://store/run --save-interval 1", "--save msc://store/run: object storage is not read or written"),
        ("--load s3://bucket/run", "--load s3://bucket/run: object storage"),
        ("--data-path 0.5 /here/a 0.5 s3://bucket/b", "--data-path s3://bucket/b: object storage"),
        ("--data-cache-path gs://bucket/cache", "--data-cache-path gs://bucket/cache: object storage"),
        ("--tensorboard-dir msc://store/tb", "--tensorboard-dir msc://store/tb: object storage"),
    ],
)  # fmt: skip
def test_the_parser_of_the_trainer_refuses(
    flags: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` and `submit` ask the same parser and checks as the trainer."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CompeteError) as error:
        read_job(recipe_of(flags), 1)
    assert says in str(error.value) and not list(tmp_path.iterdir())


def test_local_paths_and_other_values_pass() -> None:
    check_local_paths(
        argparse.Namespace(save="/a/msc:/b", load="relative", lr=0.1, names=["s3", "s3x://"], none=None, path=Path("x"))
    )
    with pytest.raises(CompeteError, match="--some-path s3:/a"):
        check_local_paths(argparse.Namespace(some_path=Path("s3://a")))
