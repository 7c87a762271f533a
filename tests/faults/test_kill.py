"""SIGKILL of a rank: in a step, and at every moment of a save."""

from pathlib import Path

import pytest

from tests.faults.injected import INTERVAL, MOMENTS, RUN, assert_goes_on, kill_at_save, kill_at_step, killed, train

pytestmark = pytest.mark.faults


def test_in_a_step(tmp_path: Path, undisturbed: Path) -> None:
    flags = f"{RUN} --save {tmp_path}/ckpt --load {tmp_path}/ckpt"
    killed(2, flags, (kill_at_step, (1, 6)))
    train(2, f"{flags} --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=4)


@pytest.mark.parametrize("moment", MOMENTS)
def test_in_a_save(moment: str, tmp_path: Path, undisturbed: Path) -> None:
    flags = f"{RUN} --save {tmp_path}/ckpt --load {tmp_path}/ckpt"
    killed(2, flags, (kill_at_save, (moment, 4)))
    assert (tmp_path / "ckpt/latest_checkpointed_iteration.txt").read_text() == str(INTERVAL)
    train(2, f"{flags} --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=INTERVAL)


def test_in_the_first_save(tmp_path: Path, undisturbed: Path) -> None:
    flags = f"{RUN} --save {tmp_path}/ckpt --load {tmp_path}/ckpt"
    killed(2, flags, (kill_at_save, ("between shards", INTERVAL)))
    train(2, f"{flags} --tensorboard-dir {tmp_path}/again")
    assert_goes_on(tmp_path / "again", undisturbed, after=0)
