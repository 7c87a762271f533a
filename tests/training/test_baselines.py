"""Baseline routers in the trainer: they learn, resume exactly, and a checkpoint of theirs is not read by another router."""

from pathlib import Path

import pytest

from megatron_compete.moe.baselines import BASELINES
from tests.training.runs import losses, train

STEPS, MIDDLE = 5, 3
FAST = "xmoe"
EXPERT_PARALLEL = "--expert-model-parallel-size 2"
RUNS = [pytest.param(FAST, 1, "", id=FAST)]
RUNS += [pytest.param(name, 2, EXPERT_PARALLEL, id=f"{name}-ep2", marks=pytest.mark.slow) for name in BASELINES]


@pytest.mark.parametrize(("router", "world", "layout"), RUNS)
def test_a_resumed_run_equals_an_uninterrupted_one(router: str, world: int, layout: str, tmp_path: Path) -> None:
    flags = f"--router {router} {layout} --train-iters {STEPS}"
    train(world, f"{flags} --save {tmp_path}/ckpt --save-interval {MIDDLE} --tensorboard-dir {tmp_path}/whole")
    (tmp_path / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    train(world, f"{flags} --load {tmp_path}/ckpt --tensorboard-dir {tmp_path}/resumed")
    whole, resumed = losses(tmp_path / "whole"), losses(tmp_path / "resumed")
    assert whole[STEPS] < whole[1] - 0.1
    assert resumed == {step: loss for step, loss in whole.items() if step > MIDDLE}


@pytest.mark.slow
def test_another_router_stops_before_it_loads(tmp_path: Path) -> None:
    train(2, f"--router {FAST} {EXPERT_PARALLEL} --train-iters 1 --save {tmp_path} --save-interval 1")
    with pytest.raises(AssertionError, match=f"--router topk cannot go on from a checkpoint of --router {FAST}"):
        train(2, f"--router topk {EXPERT_PARALLEL} --train-iters 2 --load {tmp_path}")
