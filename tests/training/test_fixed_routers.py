"""Routers that do not learn, in the trainer: the same run in every layout, and weights that stay."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from tests.training.runs import largest_difference, losses, train

STEPS, LAYERS = 4, 4
RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
LAYOUTS = {
    "ep2": (2, "--expert-model-parallel-size 2"),
    "tp2": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "recompute": (1, f"{RECOMPUTE} --eval-iters 1 --eval-interval 1"),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("router", ["hash", "frozen"])
def test_layouts_train_alike(router: str, tmp_path: Path) -> None:
    """From one rank's first step on: experts on two ranks, sequences on two, and layers recomputed between evaluations."""
    common = f"--router {router} --train-iters {STEPS}"
    train(1, f"{common} --save {tmp_path}/ckpt --save-interval 1 --tensorboard-dir {tmp_path}/one")
    (tmp_path / "ckpt/latest_checkpointed_iteration.txt").write_text("1")
    one = losses(tmp_path / "one")
    assert one[STEPS] < one[1] - 0.1
    for name, (world, layout) in LAYOUTS.items():
        train(world, f"{common} {layout} --load {tmp_path}/ckpt --tensorboard-dir {tmp_path}/{name}")
        found = losses(tmp_path / name)
        assert list(found) == list(range(2, STEPS + 1))
        if name == "recompute":
            assert found == {step: one[step] for step in found}
        else:
            assert largest_difference(found, one) < 1e-5, name


def routers(folder: Path, step: int) -> Tensor:
    """Weights of all layers, [L, E, H]."""
    source = TorchDistCheckpoint(folder / f"iter_{step:07d}")
    return torch.stack([source.read("decoder.layers.mlp.router.weight", (layer,)) for layer in range(LAYERS)])


def test_a_frozen_router_stays_under_weight_decay_and_a_distributed_optimizer(tmp_path: Path) -> None:
    flags = f"--router frozen --weight-decay 0.5 --use-distributed-optimizer --bf16 --train-iters {STEPS}"
    train(1, f"{flags} --save {tmp_path} --save-interval 1 --tensorboard-dir {tmp_path}/board")
    first, last = routers(tmp_path, 1), routers(tmp_path, STEPS)
    assert torch.equal(first, last) and first.any()
    found = losses(tmp_path / "board")
    assert found[STEPS] < found[1] - 0.1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--router hash --moe-aux-loss-coeff 0.01", "give --moe-aux-loss-coeff 0.0"),
        ("--router frozen --moe-aux-loss-coeff 0.01", "give --moe-aux-loss-coeff 0.0"),
        ("--router hash --pipeline-model-parallel-size 2", "later stages see no token ids"),
    ],
)
def test_a_job_that_cannot_work_is_refused(flags: str, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        train(2, f"{flags} --train-iters 1")
