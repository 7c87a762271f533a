"""What a trainer is told of a model of several parts: one schedule, layers by their number, experts by their part."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from megatron_compete.config import CompeteConfig
from tests.ranks import run_rank, run_ranks
from tests.vlm.models import LAYERS, SIGLIP, Batch, build, changed, configuration, initialize, train_step

SETTINGS = changed(SIGLIP, experts_in=("vision", "projector", "language"), num_experts=2, router_topk=1)
BALANCED = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.1, "moe_router_pre_softmax": True}
STEP = [Batch.random([[1], [1, 3]], seed=1), Batch.random([[1], [3, 1]], seed=3), Batch.random([[], []], seed=4)]


def reported(
    compete: CompeteConfig, batches: Sequence[Batch], pp: int, steps: int
) -> list[tuple[dict[str, float], list[int]]]:
    """What is logged of each step, and the layers that compete then as the schedule has it."""
    from megatron_compete.trainers import ModelCompetition
    from megatron_compete.vlm.exchange import competing_parts

    initialize(pp)
    config = configuration(SETTINGS, pipeline_model_parallel_size=pp, **BALANCED)
    step = [0]
    competition = ModelCompetition(compete, config, lambda: step[0])
    model = build(config, competing_parts(config, competition), counted=False)
    competition.check_model([model])
    found = []
    for step[0] in range(steps):
        train_step(model, batches)
        active = [number for number in competition.layer_numbers if competition.is_active(number)]
        found.append((competition.metrics(len(batches), per_layer=True), active))
    return found


def layers_with(tag: str, scalars: dict[str, float]) -> list[int]:
    return sorted(int(name.rpartition("-")[2]) for name in scalars if name.startswith(f"{tag}/layer-"))


@pytest.mark.parametrize("pp", [1, 2])
def test_every_layer_reports_under_its_number(pp: int) -> None:
    ranks = run_ranks(pp, reported, CompeteConfig(rate=1.0, max_active_layers=5, policy="shifted"), STEP, pp, 1)
    ((scalars, active),) = ranks[0]
    assert all(rank == ranks[0] for rank in ranks)
    assert scalars["competition/active-layers"] == 5 and active == [1, 2, 3, 4, 5]
    for tag in ("competition/agreement", "moe/load-max", "moe/dead-experts"):
        assert layers_with(tag, scalars) == [1, 2, 3, 4, 5]
    for layer in (1, 2, 3):  # 10 tiles of 4 patches
        assert scalars[f"competition/tokens/layer-{layer}"] == 40
        assert 1 <= scalars[f"moe/load-max/layer-{layer}"] <= 2 and scalars[f"moe/dead-experts/layer-{layer}"] <= 1
    for layer in (4, 5):  # two samples each of 11, 22 and 8 positions
        assert scalars[f"competition/tokens/layer-{layer}"] == 82
    assert all(value == value for value in scalars.values())  # none is no number
    balance = [scalars[f"moe/load_balancing_loss_layer_{layer}"] for layer in range(5)]
    assert scalars["load_balancing_loss"] == pytest.approx(sum(balance) / 5)


def test_layers_compete_as_the_one_schedule_says() -> None:
    compete = CompeteConfig(rate=0.4, max_active_layers=2, policy="shifted")
    (found,) = run_ranks(1, reported, compete, STEP[::2], 1, 5)
    assert [layers_with("competition/agreement", scalars) for scalars, _ in found] == [active for _, active in found]
    assert sum(len(active) for _, active in found) > 5


def logged_z_losses(of_ranks: Sequence[Sequence[Batch]]) -> dict[str, float]:
    """Megatron's z-losses of a step as its tracker reports them, of a model whose language model has no experts."""
    import torch
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from megatron_compete.vlm.exchange import stock_parts

    initialize()
    config = configuration(SIGLIP, moe_z_loss_coeff=0.5)
    batches = of_ranks[torch.distributed.get_rank()]
    train_step(build(config, stock_parts(config)), batches)
    scalars: dict[str, float] = {}
    writer = SimpleNamespace(add_scalar=lambda name, value, step: scalars.update({name: float(value)}))
    get_moe_metrics_tracker().report(
        1 / len(batches), 1, writer, per_layer_logging=True, force_initialize=True, track_names=["z_loss"],
        num_layers=LAYERS, moe_layer_freq=1,
    )  # fmt: skip
    return scalars


def test_a_rank_that_has_had_only_text_does_not_hold_up_the_z_loss() -> None:
    pictures, text = Batch.random([[1], [2]], seed=1), Batch.random([[], []], seed=2)
    apart = run_ranks(2, logged_z_losses, [[pictures], [text]], timeout=60)
    assert apart[0] == apart[1]
    assert apart[0] == pytest.approx(run_rank(logged_z_losses, [[pictures, text]]))
    of_pictures = run_rank(logged_z_losses, [[pictures]])
    layers = [of_pictures[f"moe/z_loss_layer_{layer}"] for layer in range(3)]
    assert min(layers) > 0 and of_pictures["z_loss"] == pytest.approx(sum(layers) / 3)
    assert apart[0]["z_loss"] == pytest.approx(of_pictures["z_loss"] / 2)  # text adds nothing to the training loss
