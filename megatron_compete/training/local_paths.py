"""No object storage: this trainer checks, sets aside and removes checkpoints as local folders, and so it reads data.

Megatron reaches object storage by its multi-storage client (`--enable-msc`) and, for datasets, by `s3://` prefixes.
"""

import argparse
from collections.abc import Sequence

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.local_paths import check_local


def refuse_msc(tokens: Sequence[str]) -> None:
    """Raise a `CompeteError` for `--enable-msc`, before Megatron's parser looks for its package."""
    if "--enable-msc" in tokens:
        raise CompeteError(
            "--enable-msc: this trainer takes checkpoints and data for local files: mount the storage (mount-s3, gcsfuse, "
            "rclone) and give paths"
        )


def check_local_paths(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for any argument that names a place in object storage."""
    for name, value in vars(args).items():
        check_local(f"--{name.replace('_', '-')}", value)
