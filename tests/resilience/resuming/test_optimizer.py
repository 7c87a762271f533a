"""A run goes on in another parallel layout: losses and competition are those of the run that did not change."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, param_group_identifier_keys

from megatron_compete.common.errors import CompeteError
from megatron_compete.report.scalars import Scalars, read_scalars
from megatron_compete.resilience.resuming.optimizer import regroup
from tests.training.runs import largest_difference, train

STEPS, MIDDLE = 6, 3
LAYOUTS = {
    "one": (1, ""),
    "tp2": (2, "--tensor-model-parallel-size 2 --sequence-parallel"),
    "ep2": (2, "--expert-model-parallel-size 2"),
    "pp2": (2, "--pipeline-model-parallel-size 2"),
    "ep4": (4, "--expert-model-parallel-size 4"),
    "pp4": (4, "--pipeline-model-parallel-size 4"),
}
RESHARDABLE = "--use-distributed-optimizer --dist-ckpt-optim-fully-reshardable"
CONTINUED = ("competition/active-layers", "competition/agreement", "competition/distillation-loss", "moe/load-max")


def run(layout: str, folder: Path, flags: str) -> Scalars:
    """What a run of `STEPS` steps logs; learning rates high enough for the optimizer's state to matter."""
    ranks, parallel = LAYOUTS[layout]
    train(ranks, f"{parallel} {flags} --lr 3e-3 --train-iters {STEPS} --tensorboard-dir {folder}")
    return read_scalars(folder)


def saved_run(layout: str, folder: Path, flags: str = "") -> Scalars:
    """A whole run, with a checkpoint in its middle that is the one to resume from."""
    scalars = run(layout, folder / "whole", f"{flags} --save {folder}/ckpt --save-interval {MIDDLE}")
    (folder / "ckpt/latest_checkpointed_iteration.txt").write_text(str(MIDDLE))
    return scalars


CHANGES = [
    pytest.param("tp2", "ep4", "", id="tp2-ep4", marks=pytest.mark.slow),
    pytest.param("ep2", "pp2", "", id="ep2-pp2"),
    pytest.param("one", "ep2", RESHARDABLE, id="dist-1-ep2"),
    pytest.param("ep2", "one", RESHARDABLE, id="dist-ep2-1", marks=pytest.mark.slow),
]
"""From one optimizer to two and back, plain and distributed; the fast ones are each way once, and each kind once."""


@pytest.mark.parametrize(("before", "after", "flags"), CHANGES)
def test_another_layout_goes_on(before: str, after: str, flags: str, tmp_path: Path) -> None:
    whole = saved_run(before, tmp_path, flags)
    resumed = run(after, tmp_path / "resumed", f"{flags} --load {tmp_path}/ckpt")
    assert sorted(resumed["lm loss"]) == list(range(MIDDLE + 1, STEPS + 1))
    assert largest_difference(whole["lm loss"], resumed["lm loss"]) < 1e-5
    for name in CONTINUED:
        assert largest_difference(whole[name], resumed[name]) < 1e-3, name
    if before == "one":  # the cheapest to run once more
        without = run(before, tmp_path / "without", f"{flags} --load {tmp_path}/ckpt --no-load-optim")
        assert largest_difference(whole["lm loss"], without["lm loss"]) > 1e-3  # so the state was there


@pytest.mark.slow
def test_a_pipeline_of_four_goes_on_alone_and_with_its_optimizer(tmp_path: Path) -> None:
    whole = saved_run("pp4", tmp_path)
    resumed = run("one", tmp_path / "resumed", f"--load {tmp_path}/ckpt")
    assert largest_difference(whole["lm loss"], resumed["lm loss"]) < 1e-5
    without = run("one", tmp_path / "without", f"--load {tmp_path}/ckpt --no-load-optim")
    assert largest_difference(whole["lm loss"], without["lm loss"]) > 1e-3  # so the state was there


class Optimizer:
    """A torch optimizer's groups, as far as `regroup` looks at them."""

    def __init__(self, *groups: dict) -> None:
        self.param_groups = list(groups)


DECAYED = {"wd_mult": 1.0, "is_expert_parallel": False}
PLAIN = {"wd_mult": 0.0, "is_expert_parallel": False}
EXPERT = {"wd_mult": 1.0, "is_expert_parallel": True}


def test_settings_of_one_optimizer_go_to_both() -> None:
    state = {
        0: {"state": {0: "m"}, "param_groups": [{"params": [0]}, {"params": [1]}]},
        1: {"state": {0: "e"}, "param_groups": [{"params": [0]}]},
        "state": {"common_step": 7},
        "param_groups": [DECAYED | {"lr": 0.1}, PLAIN | {"lr": 0.2}],
    }
    found = regroup(state, [Optimizer(PLAIN, DECAYED), Optimizer(EXPERT)])  # type: ignore[list-item]
    assert found == {
        0: {
            "state": {0: "m", "common_step": 7},
            "param_groups": [PLAIN | {"lr": 0.2, "params": [0]}, DECAYED | {"lr": 0.1, "params": [1]}],
        },
        1: {"state": {0: "e", "common_step": 7}, "param_groups": [EXPERT | {"lr": 0.1, "params": [0]}]},
    }


def test_settings_of_both_go_to_one() -> None:
    state = {
        0: {"state": {"common_step": 7}, "param_groups": [DECAYED | {"lr": 0.1}, PLAIN | {"lr": 0.2}]},
        1: {"state": {"common_step": 7}, "param_groups": [EXPERT | {"lr": 0.1}]},
        "state": {0: "m"},
        "param_groups": [{"params": [0]}, {"params": [1]}],
    }
    found = regroup(state, [Optimizer(DECAYED, PLAIN)])  # type: ignore[list-item]
    assert found == {
        "state": {0: "m", "common_step": 7},
        "param_groups": [DECAYED | {"lr": 0.1, "params": [0]}, PLAIN | {"lr": 0.2, "params": [1]}],
    }


def test_mixed_precision_keeps_what_was_loaded_for_it() -> None:
    state = {
        0: {"fp32_from_fp16_params": [["a"]], "optimizer": {"state": {0: "m"}, "param_groups": [{"params": [0]}]}},
        1: {"fp32_from_fp16_params": [["b"]], "optimizer": {"state": {0: "e"}, "param_groups": [{"params": [0]}]}},
        "optimizer": {"state": {"common_step": 7}, "param_groups": [DECAYED | {"lr": 0.1}]},
        "grad_scaler": {"scale": 2.0},
    }
    found = regroup(state, [Optimizer(DECAYED), Optimizer(EXPERT)])  # type: ignore[list-item]
    assert found[1] == {
        "fp32_from_fp16_params": [["b"]],
        "grad_scaler": {"scale": 2.0},
        "optimizer": {"state": {0: "e", "common_step": 7}, "param_groups": [EXPERT | {"lr": 0.1, "params": [0]}]},
    }


@pytest.mark.parametrize("state", [{0: {"a": 1}, 1: {"b": 2}}, {"state": {}, "param_groups": []}], ids=["both", "one"])
def test_the_same_layout_is_left_alone(state: dict) -> None:
    assert regroup(state, [Optimizer()] * sum(isinstance(key, int) for key in state)) is state  # type: ignore[list-item]


def test_another_optimizer_is_refused() -> None:
    state = {0: {}, 1: {}, "state": {}, "param_groups": [DECAYED]}
    with pytest.raises(CompeteError, match=r"no parameter group like .*wd_mult.*--no-load-optim"):
        regroup(state, [Optimizer(PLAIN), Optimizer(EXPERT)])  # type: ignore[list-item]


def test_upstream_still_stops() -> None:
    chain = ChainedOptimizer.__new__(ChainedOptimizer)
    chain.chained_optimizers = [Optimizer(DECAYED), Optimizer(EXPERT)]  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="Expected 2 entries"):
        ChainedOptimizer.load_state_dict(chain, {0: {}, 1: {}, "state": {}, "param_groups": []})


def test_upstream_still_knows_groups_by_their_rates() -> None:
    assert {"max_lr", "min_lr"} <= set(param_group_identifier_keys)


@pytest.mark.skipif(HAVE_APEX_OR_TE, reason="their Adam keeps the step in the parameter groups")
def test_upstream_still_takes_torchs_step_for_a_tensor() -> None:
    """It wants every tensor of torch's Adam from the checkpoint, which has no step among them."""
    parameter = torch.nn.Parameter(torch.ones(1))
    adam = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(1)
    adam.step()
    optimizer: Any = SimpleNamespace(
        optimizer=adam,
        config=SimpleNamespace(use_precision_aware_optimizer_no_fp8_or_ds_fp8=False),
        model_param_group_index_map={parameter: (0, 0)},
    )
    tensors = dict.fromkeys(("param", "exp_avg", "exp_avg_sq"), torch.zeros(1))
    with torch.no_grad(), pytest.raises(KeyError, match="step"):
        DistributedOptimizer._set_main_param_and_optimizer_states(optimizer, parameter, tensors)
