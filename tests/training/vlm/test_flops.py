"""Floating-point operations of tower and projector against torch's own counter on the real model."""

import argparse
from typing import Any

import numpy as np
import pytest
import torch
from megatron.training import training
from torch.utils.flop_counter import FlopCounterMode

from megatron_compete.config import CompeteConfig
from megatron_compete.training.flops import scoring_flops
from megatron_compete.training.vlm.flops import BACKWARD, counted_vision, vision_flops, vision_scoring
from megatron_compete.vlm.config import VisionConfig
from megatron_compete.vlm.exchange import stock_parts
from tests.ranks import run_rank
from tests.training.test_flops import ARGS
from tests.vlm.models import CLIP, SIGLIP, build, changed, configuration, initialize


def counted_by_torch(settings: VisionConfig, dense: bool) -> tuple[float, float, list[float]]:
    """Forward operations of one tile through tower and projector, ours of the same, and those of all experts of each layer."""
    from megatron.core.transformer.moe.router import TopKRouter

    initialize()
    config = configuration(settings, **({"num_moe_experts": None, "moe_ffn_hidden_size": None} if dense else {}))
    model = build(config, stock_parts(config)).eval()
    tile = torch.randn(1, 3, config.img_h, config.img_w)
    with FlopCounterMode(display=False) as counter:
        states = model.vision_model(tile)
        if settings.disable_class_token:
            states = states[:, 1:]
        model.vision_projection(states.transpose(0, 1).contiguous())
    places = [*[model.vision_model.seq_length] * config.tower.num_layers, config.image_embeddings]
    routers = [
        module
        for module in (*model.vision_model.modules(), *model.vision_projection.modules())
        if isinstance(module, TopKRouter)
    ]
    of_routers = sum(2.0 * tokens * router.weight.numel() for tokens, router in zip(places, routers))
    frozen = configuration(changed(settings, freeze_tower=True))
    ours = (vision_flops(config)) / (1 + BACKWARD)
    scoring = [] if dense else vision_scoring(config, CompeteConfig(rate=0.1))(argparse.Namespace(), 1.0, 0.0).tolist()
    assert dense or vision_flops(frozen) < vision_flops(config)
    return counter.get_total_flops() - of_routers, ours, scoring


@pytest.mark.parametrize("settings", [SIGLIP, CLIP], ids=["siglip", "clip"])
@pytest.mark.parametrize("dense", [True, False])
def test_vision_flops_are_torchs(settings: VisionConfig, dense: bool) -> None:
    """But for routers, whose products Megatron does not count either."""
    found, ours, scoring = run_rank(counted_by_torch, settings, dense)
    assert ours == pytest.approx(found)
    if not dense:
        assert len(scoring) == (settings.num_layers or 0) + 1 and min(scoring) > 0


def test_a_step_has_its_decoders_operations_and_a_picture_a_sample() -> None:
    config: Any = configuration(SIGLIP)
    args = argparse.Namespace(**{**vars(ARGS), "num_experts": 4})
    dense = argparse.Namespace(**{**vars(ARGS), "num_experts": None})
    upstream = training.num_floating_point_operations
    with counted_vision(config):
        assert training.num_floating_point_operations(args, 3) == pytest.approx(
            upstream(dense, 3) + 3 * vision_flops(config)
        )


def test_frozen_parts_have_fewer_products() -> None:
    """None for gradients of its weights, and none for those of its inputs where all before it is frozen."""

    def passes(**frozen: bool) -> float:
        return vision_flops(configuration(changed(SIGLIP, **frozen)))

    whole = passes()
    once = passes(freeze_tower=True, freeze_projector=True)
    projector = passes(freeze_tower=True) - once  # its gradients of weights
    assert whole == pytest.approx(3 * once)
    assert passes(freeze_projector=True) == pytest.approx(whole - projector)


def test_scoring_is_all_experts_once() -> None:
    """E experts of two matrices, for each patch; twice more backward where all of them learn."""
    config = configuration(SIGLIP)
    winners, everyone = (
        vision_scoring(config, CompeteConfig(rate=0.1, response_gradients=learn))(argparse.Namespace(), 2.0, 0.0)
        for learn in ("winners", "all")
    )
    hidden, width, patches = config.tower.hidden_size, config.tower.moe_ffn_hidden_size, config.image_embeddings
    assert winners[0] == 2 * 2 * patches * config.tower.num_moe_experts * 2 * hidden * width
    np.testing.assert_allclose(everyone, 3 * winners)


def test_a_decoders_layers_score_as_a_language_models() -> None:
    """By utility latent experts are projected back from once a token, and not once an expert."""
    config = configuration(changed(SIGLIP, experts_in=("projector", "language")))
    args = argparse.Namespace(**vars(ARGS) | {"moe_latent_size": 3})
    everyone = CompeteConfig(rate=0.1, response_gradients="all")
    for compete in (CompeteConfig(rate=0.1), everyone, CompeteConfig(rate=0.1, kind="utility")):
        layers = vision_scoring(config, compete)(args, 2.0, 20.0)
        assert layers[1:].tolist() == [scoring_flops(args, 20.0, compete.response_gradients, compete.kind)] * 2
