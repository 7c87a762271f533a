"""A router that is given padding alone attaches no loss; Megatron's own gives gradients that are no numbers. Fillers of short
samples are no tokens to the routers of the language model."""

import pytest
import torch

from tests.ranks import run_rank, run_ranks
from tests.vlm.models import (
    SIGLIP,
    WINNERS,
    Batch,
    changed,
    competing_model,
    configuration,
    initialize,
    relative,
    train_step,
)


def router_gradient(spared: bool, padded: int) -> torch.Tensor:
    """Gradient of a router's weight that Megatron's balance loss gives it, where some of four tokens are padding."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    from megatron_compete.vlm.exchange import stock_parts
    from megatron_compete.vlm.model import build_model
    from megatron_compete.vlm.padding import spare_padding

    initialize()
    MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(1.0))
    balance = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 1.0}
    config = configuration(SIGLIP, **balance)
    model = build_model(config, stock_parts(config), vocab_size=64, seq_length=8, image_token_id=3)
    layer = model.vision_model.decoder.layers[0].mlp
    layer.router._forward_pre_hooks.clear()
    if spared:
        spare_padding(layer)
    padding = torch.zeros(1, 4, dtype=torch.bool)
    padding[:, 4 - padded :] = True
    output, _ = layer(torch.randn(4, 1, 16), padding_mask=padding)
    (0 * output).sum().backward()
    assert layer.router.training
    return layer.router.weight.grad


def test_upstream_still_divides_by_no_tokens() -> None:
    assert torch.isnan(run_rank(router_gradient, False, 4)).any()


def test_padding_alone_is_spared_and_nothing_else() -> None:
    assert not run_rank(router_gradient, True, 4).any()
    assert torch.equal(run_rank(router_gradient, True, 2), run_rank(router_gradient, False, 2))
    assert run_rank(router_gradient, True, 2).any()


def tokens_counted(ours: bool) -> list[float] | str:
    """Choices that a router with an expert bias counts of eight tokens, five of them padding: all, and of the busiest expert."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.moe.router import TopKRouter

    from megatron_compete.vlm.padding import bias_counts_tokens_alone

    initialize()
    if ours:
        bias_counts_tokens_alone()
    tower = configuration(SIGLIP, moe_router_enable_expert_bias=True, moe_router_score_function="sigmoid").tower
    router = TopKRouter(tower, ProcessGroupCollection.use_mpu_process_groups()).train()
    try:
        router(torch.randn(8, 1, 16), padding_mask=torch.arange(8).view(8, 1) >= 3)
    except RuntimeError as error:
        return str(error)
    return [float(router.local_tokens_per_expert.sum()), float(router.local_tokens_per_expert.max())]


def test_upstream_still_lays_the_mask_over_experts() -> None:
    assert "must match the size" in run_rank(tokens_counted, False)


def test_an_expert_bias_counts_tokens_alone() -> None:
    total, most = run_rank(tokens_counted, True)
    assert total == 3 * WINNERS and most <= 3


def test_positions_after_the_last_token_are_padding() -> None:
    from megatron_compete.vlm.padding import padded_positions

    positions = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 0], [0, 0, 0, 0]])
    images = torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    tiles = torch.tensor([2, 1, 1], dtype=torch.int32)
    lengths = (~padded_positions(positions, images, tiles, tile_length=3, length=None)).sum(1)
    assert lengths.tolist() == [1 + 6 + 1 + 3, 3 + 1, 1]
    mask = padded_positions(positions, images, tiles, 3, length=16)
    assert mask.shape == (3, 16) and torch.equal((~mask).sum(1), lengths)
    assert torch.equal(mask, torch.arange(16) >= lengths[:, None])


def gradients(batches: list[Batch], pp: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    initialize(pp)
    settings = changed(SIGLIP, experts_in=("language",))
    balance = {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.5, "moe_z_loss_coeff": 0.5}
    config = configuration(settings, pipeline_model_parallel_size=pp, **balance)
    return train_step(competing_model(config), batches)


def test_fillers_are_no_tokens_to_routers_of_the_language_model() -> None:
    batch = Batch.random([[1], [], [2]], text=7)
    losses, grads = run_rank(gradients, [batch], 1)
    losses_filled, grads_filled = run_rank(gradients, [batch.filled(4)], 1)
    assert losses_filled == pytest.approx(losses, rel=1e-6)
    assert {name: off for name in grads if (off := relative(grads_filled[name], grads[name])) > 1e-5} == {}


def test_a_pipelines_fixed_length_is_no_tokens_either() -> None:
    batches = [Batch.random([[1], []], text=6), Batch.random([[], []], text=6, seed=1)]
    losses, grads = run_rank(gradients, batches, 1)
    first, last = run_ranks(2, gradients, batches, 2)
    assert last[0] == pytest.approx(losses, rel=1e-6)
    pipelined = first[1] | last[1]
    assert {name: off for name in grads if (off := relative(pipelined[name], grads[name])) > 1e-5} == {}
