"""Routers with any number of experts in the trainer: their state moves once a step, in every layout alike, and is saved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.report.scalars import read_scalars
from tests.training.runs import largest_difference, train

MIDDLE, STEPS, LAYERS = 2, 5, 4
ALL_PARALLEL = (
    "--pipeline-model-parallel-size 2 --expert-model-parallel-size 2 "
    "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
)


def state(folder: Path, name: str) -> Tensor:
    """A buffer of all layers' routers, [L, N]."""
    source = TorchDistCheckpoint(folder / f"iter_{STEPS:07d}")
    key = f"decoder.layers.mlp.router.{name}"
    return torch.stack([source.read(key, (layer,)).flatten() for layer in range(LAYERS)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("router", ["remoe", "usmoe", "threshold", "default-moe"])
def test_state_in_a_checkpoint(router: str, tmp_path: Path) -> None:
    """From two steps of one rank on: one rank, two stages x two expert ranks with recompute and evaluations, two in bf16."""
    common = f"--router {router} --lr 1e-3"
    train(1, f"{common} --train-iters {MIDDLE} --save {tmp_path}/start --save-interval {MIDDLE}", timeout=900)
    common += f" --train-iters {STEPS} --save-interval {STEPS} --load {tmp_path}/start --no-load-optim"
    for name, world, flags in (
        ("one", 1, ""),
        ("four", 4, f"{ALL_PARALLEL} --eval-iters 1 --eval-interval 1"),
        ("bf16", 2, "--expert-model-parallel-size 2 --bf16"),
    ):
        saved = f"--save {tmp_path}/{name} --tensorboard-dir {tmp_path}/{name}/board"
        train(world, f"{common} {flags} {saved}", timeout=900)
    one, four = (read_scalars(tmp_path / name / "board") for name in ("one", "four"))
    assert largest_difference(one["lm loss"], four["lm loss"]) < 1e-4
    assert set(one["experts_per_token"]) == set(range(MIDDLE + 1, STEPS + 1))
    exactly_two = router == "default-moe"
    assert all(0.5 < count < 3.5 and (count == 2.0) == exactly_two for count in one["experts_per_token"].values())
    assert largest_difference(one["experts_per_token"], four["experts_per_token"]) < 0.02
    if router == "remoe":
        check_coefficients([state(tmp_path / name, "l1_coefficient") for name in ("one", "four", "bf16")])
    elif router == "default-moe":
        check_defaults(*(state(tmp_path / name, "default_outputs") for name in ("one", "four", "bf16")))
    else:
        for name in ("one", "four", "bf16"):
            assert state(tmp_path / name, "threshold_steps").tolist() == [[STEPS]] * LAYERS
        check_thresholds(*(state(tmp_path / name, "threshold") for name in ("one", "four", "bf16")))


def check_coefficients(of_runs: list[Tensor]) -> None:
    """Alike in all layers of a run: a product of as many factors as there were steps, up or down each."""
    for found in of_runs:
        assert torch.equal(found, found[:1].expand_as(found))
        factors = (found[0] / 1e-8).log() / torch.tensor(1.2).log()
        assert min(abs(factors.item() - whole) for whole in range(-STEPS, STEPS + 1)) < 1e-3
    torch.testing.assert_close(of_runs[0], of_runs[1], rtol=1e-6, atol=0)


def check_thresholds(one: Tensor, four: Tensor, bf16: Tensor) -> None:
    """Of their own in every layer, the same in another layout, and in fp32 whatever the model."""
    assert len(one.unique()) == one.numel()
    torch.testing.assert_close(four, one, rtol=1e-4, atol=1e-5)
    assert bf16.dtype == torch.float32 and not torch.equal(bf16, bf16.bfloat16().float())


def check_defaults(one: Tensor, four: Tensor, bf16: Tensor) -> None:
    """Of every expert, the same in another layout under recomputation, and in fp32 whatever the model."""
    assert (one.abs().view(LAYERS, 8, -1).amax(-1) > 0).all()
    torch.testing.assert_close(four, one, rtol=1e-3, atol=1e-5)
    assert bf16.dtype == torch.float32 and not torch.equal(bf16, bf16.bfloat16().float())


def test_default_vectors_go_on_in_a_resumed_run(tmp_path: Path) -> None:
    common = f"--router default-moe --lr 1e-3 --train-iters {STEPS} --save {tmp_path}/saved"
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(2, f"{common} --save-interval {MIDDLE} --expert-model-parallel-size 2 --tensorboard-dir {whole}")
    (tmp_path / "saved/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    train(
        2,
        f"{common} --save-interval {MIDDLE} --load {tmp_path}/saved --expert-model-parallel-size 2 --tensorboard-dir {resumed}",
    )
    before, after = read_scalars(whole)["lm loss"], read_scalars(resumed)["lm loss"]
    assert list(after) == list(range(MIDDLE + 1, STEPS + 1))
    assert after == {step: before[step] for step in after}
