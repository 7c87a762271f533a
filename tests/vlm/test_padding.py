"""A router that is given padding alone attaches no loss; Megatron's own gives gradients that are no numbers."""

import torch

from tests.ranks import run_rank
from tests.vlm.models import SIGLIP, configuration, initialize


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
