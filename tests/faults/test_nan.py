"""A loss that is not a number: Megatron's rerun machine, with layers that compete."""

from pathlib import Path

import pytest

from megatron_compete.report.scalars import read_scalars
from tests.faults.damage import TRACKER
from tests.faults.injected import RUN, STEPS, assert_goes_on, failing, losses, nan_at_step, run_every_step_twice, train

pytestmark = pytest.mark.faults

ALWAYS, ONCE = 1_000_000, 1


def flags(folder: Path) -> str:
    return f"{RUN} --save {folder}/ckpt --load {folder}/ckpt"


def test_once_is_taken_for_a_transient_error(tmp_path: Path, undisturbed: Path) -> None:
    """Exit code 17, nothing saved: the same command starts from the last checkpoint."""
    said = failing(2, flags(tmp_path), (nan_at_step, (1, 6, ONCE)))
    assert "found nan in the local forward loss" in said and "SystemExit: 17" in said
    assert (tmp_path / "ckpt" / TRACKER).read_text() == "4"
    train(2, f"{flags(tmp_path)} --tensorboard-dir {tmp_path}/resumed")
    assert_goes_on(tmp_path / "resumed", undisturbed, after=4)


def test_always_is_saved_for_another_try_and_can_be_skipped(tmp_path: Path) -> None:
    """Exit code 16 and a checkpoint before the bad step; --iterations-to-skip leaves the step out.

    With --rerun-mode disabled for that start, or the machine goes on waiting for the step that it was to run again.
    """
    said = failing(2, flags(tmp_path), (nan_at_step, (1, 6, ALWAYS)))
    assert "Need to rerun on a different GPU" in said and "SystemExit: 16" in said
    assert (tmp_path / "ckpt" / TRACKER).read_text() == "5"
    said = failing(2, flags(tmp_path), (nan_at_step, (1, 6, ALWAYS)))
    assert "Got rescheduled on the same GPU" in said and "SystemExit: 16" in said
    train(
        2,
        f"{flags(tmp_path)} --rerun-mode disabled --iterations-to-skip 6 --tensorboard-dir {tmp_path}/resumed",
        (nan_at_step, (1, 6, ALWAYS)),
    )
    train(2, f"{RUN} --iterations-to-skip 6 --tensorboard-dir {tmp_path}/skipped")
    skipped = losses(tmp_path / "skipped")
    assert set(skipped) == {1, 2, 3, 4, 5, 7, 8}
    assert losses(tmp_path / "resumed") == {step: loss for step, loss in skipped.items() if step > 5}


def test_without_the_machine_it_is_a_failure(tmp_path: Path) -> None:
    said = failing(2, f"{flags(tmp_path)} --rerun-mode disabled", (nan_at_step, (1, 4, ALWAYS)))
    assert "found nan in the local forward loss" in said and "RuntimeError" in said
    assert (tmp_path / "ckpt" / TRACKER).read_text() == "2"


@pytest.mark.parametrize("centering", ["none", "batch", "ema"])
def test_a_rerun_is_the_same_step(centering: str, tmp_path: Path) -> None:
    """Every step is run twice: same schedule, same winners, same losses."""
    base = f"{RUN} --compete-response-centering {centering}"
    train(2, f"{base} --tensorboard-dir {tmp_path}/once")
    train(2, f"{base} --tensorboard-dir {tmp_path}/twice", (run_every_step_twice, ()))
    once, twice = read_scalars(tmp_path / "once"), read_scalars(tmp_path / "twice")
    assert once["lm loss"] == twice["lm loss"] and max(once["lm loss"]) == STEPS
    assert once["competition/active-layers"] == twice["competition/active-layers"]
    assert once["competition/agreement"] == twice["competition/agreement"]
