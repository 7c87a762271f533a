"""The model in other layouts, other numbers of microbatches and with recomputation: the same losses and gradients."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.ranks import run_rank, run_ranks
from tests.vlm.models import (
    ALL_COMPETE,
    CLIP,
    SIGLIP,
    Batch,
    changed,
    competing_model,
    configuration,
    initialize,
    relative,
    train_step,
)

EVERYWHERE = changed(SIGLIP, experts_in=("vision", "projector", "language"))
UTILITY = CompeteConfig(rate=1.0, max_active_layers=6, kind="utility")
KINDS = {"response": ALL_COMPETE, "utility": UTILITY}
FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
SELECTIVE = {"recompute_granularity": "selective", "recompute_modules": ["moe"]}

Step = tuple[list[float], dict[str, Tensor]]


def step_of(
    settings: Any,
    compete: CompeteConfig,
    batches: Sequence[Sequence[Batch]],
    overrides: dict[str, Any],
    pp: int,
    ep: int,
) -> Step:
    """A training step of this rank's stage with the microbatches of its data parallel rank."""
    from megatron.core import parallel_state

    initialize(pp, ep)
    config = configuration(settings, pipeline_model_parallel_size=pp, expert_model_parallel_size=ep, **overrides)
    model = competing_model(config, compete)
    return train_step(model, batches[parallel_state.get_data_parallel_rank()])


def merged(steps: Sequence[Step]) -> Step:
    """Losses of the last stage, and the gradients of all ranks."""
    grads: dict[str, Tensor] = {}
    for _, here in steps:
        grads |= here
    return steps[-1][0], grads


def assert_same(actual: Step, expected: Step, tolerance: float) -> None:
    assert actual[0] == pytest.approx(expected[0], rel=tolerance)
    assert actual[1].keys() == expected[1].keys()
    off = {name: relative(grad, expected[1][name]) for name, grad in actual[1].items()}
    assert {name: difference for name, difference in off.items() if not difference <= tolerance} == {}


UNEVEN = [[[[1], [2]], [[], []]], [[[], []], [[3], [1]]]]
"""Tiles by rank, microbatch, sample and image: each rank once has text alone, while the other has images."""


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_of_text_beside_ranks_of_images_are_one_rank(kind: str) -> None:
    batches = [[Batch.random(tiles, seed=10 * rank + index) for index, tiles in enumerate(of_rank)]
               for rank, of_rank in enumerate(UNEVEN)]  # fmt: skip
    apart = run_ranks(2, step_of, EVERYWHERE, KINDS[kind], batches, {}, 1, 2)
    together = run_rank(step_of, EVERYWHERE, KINDS[kind], [[*batches[0], *batches[1]]], {}, 1, 1)
    assert [loss for losses, _ in apart for loss in losses] == pytest.approx(together[0], rel=1e-5)
    assert_same((together[0], merged(apart)[1]), together, 1e-5)


def parameters_without_gradient() -> list[str]:
    """Of a rank of text alone: under --overlap-grad-reduce the others would wait for it."""
    initialize()
    model = competing_model(configuration(SIGLIP))
    output, mask = model(**Batch.random([[], []]).on_stage(first=True))
    (output * mask).sum().backward()
    return [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_a_rank_of_text_gives_every_parameter_a_gradient() -> None:
    unused = run_rank(parameters_without_gradient)
    assert [name for name in unused if ".local_experts." not in name] == []


PIPELINED = [Batch.random([[1], [1, 3]], seed=1), Batch.random([[], []], seed=2), Batch.random([[2], [3]], seed=3)]
"""The longest sample of each has as many positions as the pipeline's sequences, where it has images."""


@pytest.mark.parametrize("settings", [SIGLIP, CLIP], ids=["siglip", "clip"])
def test_two_stages_are_one(settings: Any) -> None:
    stages = run_ranks(2, step_of, settings, ALL_COMPETE, [PIPELINED], {}, 2, 1)
    assert not any(name.startswith("vision_") for name in stages[1][1])
    assert_same(merged(stages), run_rank(step_of, settings, ALL_COMPETE, [PIPELINED], {}, 1, 1), 1e-5)


def test_a_first_stage_of_tower_and_projector_alone() -> None:
    """By `--pipeline-model-parallel-layout`, which may leave the decoder to later stages."""
    layout = {"pipeline_model_parallel_layout": "E|ttL"}
    stages = run_ranks(2, step_of, EVERYWHERE, ALL_COMPETE, [PIPELINED], layout, 2, 1)
    assert not any(".layers." in name for name in stages[0][1] if name.startswith("language_model."))
    assert_same(merged(stages), run_rank(step_of, EVERYWHERE, ALL_COMPETE, [PIPELINED], {}, 1, 1), 1e-5)


@pytest.mark.parametrize("settings", [SIGLIP, EVERYWHERE], ids=["dense", "experts"])
def test_microbatches_do_not_multiply_losses_of_routers(settings: Any) -> None:
    balance = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.1}
    batch = Batch.random([[1], [2], [], [1, 1]])
    once = run_rank(step_of, settings, ALL_COMPETE, [[batch]], balance, 1, 1)
    four = run_rank(step_of, settings, ALL_COMPETE, [[batch] * 4], balance, 1, 1)
    assert_same((once[0], four[1]), once, 1e-6)


HEAVY = changed(ALL_COMPETE, distill_coeff=20.0, diversity_coeff=10.0, response_balance_coeff=10.0, balance_loss="top1")
WITHOUT = changed(HEAVY, distill_coeff=0.0, diversity_coeff=0.0, response_balance_coeff=1e-30)
BALANCE = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 10.0, "moe_z_loss_coeff": 1.0}


def of_losses_of_layers(batches: Sequence[Batch], pp: int, overrides: dict[str, Any]) -> dict[str, Tensor]:
    """What the layers' own losses add to the gradients, those of competition and Megatron's."""
    settings = changed(EVERYWHERE, recompute="recompute_granularity" in overrides)
    heavy = merged(run_ranks(pp, step_of, settings, HEAVY, [batches], BALANCE | overrides, pp, 1))[1]
    plain = merged(run_ranks(pp, step_of, settings, WITHOUT, [batches], overrides, pp, 1))[1]
    return {name: grad - plain[name] for name, grad in heavy.items() if "router" in name}


@pytest.mark.parametrize("pp, recompute", [(1, {}), (2, SELECTIVE)], ids=["", "pp2-recomputed"])
def test_answers_of_unequal_length_do_not_change_what_losses_of_layers_weigh(
    pp: int, recompute: dict[str, Any]
) -> None:
    """Under per-token loss, of the same images and texts four times; patches outnumber the tokens that count."""
    batch = Batch.random([[1], [2]])
    four = []
    for kept in (1, 4, 2, 3):
        mask = batch.loss_mask.clone()
        mask[:, :-kept] = 0
        four.append(dataclasses.replace(batch, loss_mask=mask))
    assert len({float(one.loss_mask.sum()) for one in four}) == 4
    settings = {"calculate_per_token_loss": True} | recompute
    once, found = of_losses_of_layers([batch], 1, {}), of_losses_of_layers(four, pp, settings)
    assert len(once) == 5 and found.keys() == once.keys()
    off = {name: relative(found[name], grad) for name, grad in once.items()}
    assert max(off.values()) < 1e-5, off


@pytest.mark.parametrize("microbatches", [1, 4])
def test_per_token_loss_is_the_mean_where_microbatches_count_as_many(microbatches: int) -> None:
    """Patches are four times the loss's tokens: weighed by them, losses of routers would count as much more."""
    balance = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.1, "moe_z_loss_coeff": 0.1}
    batch = Batch.random([[1], [2], [], [1, 1]])
    mean = run_rank(step_of, EVERYWHERE, ALL_COMPETE, [[batch]], balance, 1, 1)
    per_token = {"calculate_per_token_loss": True} | balance
    summed = run_rank(step_of, EVERYWHERE, ALL_COMPETE, [[batch] * microbatches], per_token, 1, 1)
    assert_same((mean[0], summed[1]), mean, 1e-6)


def test_per_token_loss_on_ranks_of_text_and_of_images() -> None:
    batches = [[Batch.random(tiles, seed=10 * rank + index) for index, tiles in enumerate(of_rank)]
               for rank, of_rank in enumerate(UNEVEN)]  # fmt: skip
    per_token = {"calculate_per_token_loss": True}
    apart = run_ranks(2, step_of, EVERYWHERE, ALL_COMPETE, batches, per_token, 1, 2)
    together = run_rank(step_of, EVERYWHERE, ALL_COMPETE, [[*batches[0], *batches[1]]], per_token, 1, 1)
    assert_same((together[0], merged(apart)[1]), together, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recompute", [FULL, SELECTIVE], ids=["full", "selective"])
def test_recomputation_changes_no_bit(recompute: dict[str, Any], kind: str) -> None:
    batches = [[Batch.random(tiles, seed=seed) for seed, tiles in enumerate([[[1], [2]], [[], []], [[1, 1], []]])]]
    plain = run_rank(step_of, SIGLIP, KINDS[kind], batches, {}, 1, 1)
    again = run_rank(step_of, changed(SIGLIP, recompute=True), KINDS[kind], batches, recompute, 1, 1)
    assert again[0] == plain[0]
    assert [name for name, grad in plain[1].items() if not torch.equal(grad, again[1][name])] == []


@pytest.mark.parametrize("recompute", [FULL, SELECTIVE], ids=["full", "selective"])
def test_microbatches_in_flight_keep_their_winners(recompute: dict[str, Any]) -> None:
    plain = run_ranks(2, step_of, SIGLIP, ALL_COMPETE, [PIPELINED], {}, 2, 1)
    again = run_ranks(2, step_of, changed(SIGLIP, recompute=True), ALL_COMPETE, [PIPELINED], recompute, 2, 1)
    (_, expected), (_, found) = merged(plain), merged(again)
    assert [name for name, grad in expected.items() if not torch.equal(grad, found[name])] == []
