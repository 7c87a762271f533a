"""Reading a run's scalars and drawing them."""

from pathlib import Path

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.report.figure import ACTIVE, LOSS, draw_run
from megatron_compete.report.scalars import read_scalars


def test_scalars_of_a_resumed_run_are_joined_and_drawn(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for start, value in ((1, 2.0), (3, 1.0)):
        with SummaryWriter(str(tmp_path / "tb"), filename_suffix=f".{start}") as writer:
            for step in range(start, start + 2):
                writer.add_scalar(LOSS, value, step)
                writer.add_scalar(ACTIVE, step % 2, step)
    scalars = read_scalars(tmp_path / "tb")
    assert scalars[LOSS] == {1: 2.0, 2: 2.0, 3: 1.0, 4: 1.0}
    draw_run(scalars, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "figure.png").stat().st_size > 10_000  # fmt: skip


def test_a_folder_without_scalars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompeteError, match="no TensorBoard scalars"):
        read_scalars(tmp_path / "nothing")
