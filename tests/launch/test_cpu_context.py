"""Context parallelism in the trainer on CPU ranks: the same training as on one rank."""

from pathlib import Path

import pytest
import torch

from megatron_compete.launch.cpu_context import positions
from megatron_compete.report.scalars import read_scalars
from tests.moe.layouts import Layout, initialize
from tests.ranks import run_ranks
from tests.training.runs import largest_difference, train

STEPS = "--train-iters 5 --tensorboard-log-interval 1 --lr 1e-3"
UTILITY = "--compete-kind utility --compete-distill-coeff 0 --compete-diversity-coeff 0"
CP2 = "--context-parallel-size 2"
RUNS = {
    "response": (2, CP2, ""),
    "utility": (2, CP2, UTILITY),
    "response-cp2-ep4": (4, f"{CP2} --expert-model-parallel-size 4", ""),
    "response-cp2-tp2-ep2": (4, f"{CP2} --tensor-model-parallel-size 2 --sequence-parallel --expert-model-parallel-size 2", "--group-query-attention --num-query-groups 2"),
    "utility-cp2-pp2": (4, f"{CP2} --pipeline-model-parallel-size 2", UTILITY),
}  # fmt: skip
"""Ranks, their layout, and flags of both runs."""
COVERING = ("response-cp2-tp2-ep2", "utility")


def tokens_of_rank() -> list[int]:
    from megatron.core import parallel_state
    from megatron.core.utils import _get_batch_on_this_cp_rank_per_sequence_balancing

    initialize(Layout(world=4, cp=4))
    group = parallel_state.get_context_parallel_group()
    whole = {"tokens": torch.arange(32)[None], "cu_seqlens": None}
    return _get_batch_on_this_cp_rank_per_sequence_balancing(whole, cp_group=group)["tokens"][0].tolist()


def test_ranks_share_the_sequence_as_upstream_cuts_it() -> None:
    assert run_ranks(4, tokens_of_rank) == [positions(rank, 4, 8).tolist() for rank in range(4)]


@pytest.mark.parametrize("name", [name if name in COVERING else pytest.param(name, marks=pytest.mark.slow) for name in RUNS])  # fmt: skip
def test_training_is_that_of_one_rank(name: str, tmp_path: Path) -> None:
    world, layout, flags = RUNS[name]
    train(1, f"{STEPS} {flags} --save {tmp_path}/ckpt --save-interval 1 --tensorboard-dir {tmp_path / 'one'}")
    (tmp_path / "ckpt/latest_checkpointed_iteration.txt").write_text("1")
    load = f"--load {tmp_path}/ckpt --no-load-optim"
    train(1, f"{STEPS} {flags} {load} --tensorboard-dir {tmp_path / 'resumed'}")
    train(world, f"{STEPS} {flags} {layout} {load} --tensorboard-dir {tmp_path / 'many'}")
    one, many = read_scalars(tmp_path / "resumed"), read_scalars(tmp_path / "many")
    assert set(many["lm loss"]) == {2, 3, 4, 5}
    assert largest_difference(one["lm loss"], many["lm loss"]) <= 1e-4
    first = min(many["grad-norm"])  # later, one token that rounding gives to another expert tells in the norm
    assert many["grad-norm"][first] == pytest.approx(one["grad-norm"][first], rel=1e-5)
    assert one["competition/active-layers"] == many["competition/active-layers"]
    assert max(many["competition/active-layers"].values()) > 0
    assert largest_difference(one["competition/agreement"], many["competition/agreement"]) <= 1e-2
