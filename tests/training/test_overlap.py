"""Parameters gathered while the forward pass runs: a competing step waits for what it uses, as a normal one does."""

from pathlib import Path

from tests.training.runs import largest_difference, losses, train

STEPS = "--train-iters 10 --use-distributed-optimizer --tensorboard-log-interval 1"
OVERLAP = "--overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 1"
"""A bucket for every parameter: then each module must wait for its own."""


def test_overlapped_gathering_changes_no_loss(tmp_path: Path) -> None:
    train(2, f"{STEPS} --tensorboard-dir {tmp_path / 'at_once'}")
    train(2, f"{STEPS} {OVERLAP} --tensorboard-dir {tmp_path / 'overlapped'}")
    at_once, overlapped = losses(tmp_path / "at_once"), losses(tmp_path / "overlapped")
    assert len(overlapped) == 10
    assert largest_difference(at_once, overlapped) < 1e-5
