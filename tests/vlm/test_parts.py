"""Layers are counted through tower, projector and decoder, wherever they lie."""

import pytest

from megatron_compete.config import CompeteConfig
from megatron_compete.vlm.config import PARTS, VisionConfig
from tests.vlm.models import CLIP, SIGLIP, changed, configuration

LAYERS = {
    ("vision", "projector"): (1, 2, 3),
    ("projector",): (3,),
    ("language",): (4, 5, 6, 7),
    ("vision", "language"): (1, 2, 4, 5, 6, 7),
}


@pytest.mark.parametrize("experts_in", LAYERS, ids="-".join)
def test_every_part_has_numbers_of_its_own(experts_in: tuple[str, ...]) -> None:
    from megatron_compete.moe.competition import Competition, competing_layers

    config = configuration(changed(SIGLIP, experts_in=experts_in), num_layers=4, pipeline_model_parallel_size=2)
    layers = competing_layers(config)
    assert tuple(layer.number for layer in layers) == LAYERS[experts_in]
    assert [stage for _, (stage, _) in layers] == [0 if number <= 5 else 1 for number in LAYERS[experts_in]]
    competition = Competition.of_model(CompeteConfig(rate=0.1), config, lambda: 0)
    assert competition.schedule.num_layers == len(layers)
    assert competition.schedule.policy == ("shifted" if "language" not in experts_in else "balanced")


def test_parts_may_have_their_own_number_of_experts() -> None:
    from megatron_compete.moe.competition import experts_by_layer
    from megatron_compete.moe.metrics import LayerCounts

    settings = changed(SIGLIP, experts_in=("vision", "language"), num_experts=2, router_topk=1)
    config = configuration(settings, num_moe_experts=8, moe_layer_freq=2, moe_router_pre_softmax=True)
    assert experts_by_layer(config) == {1: 2, 2: 2, 4: 8}
    assert LayerCounts.of(config) == LayerCounts(slots=5, routers=3)


@pytest.mark.parametrize(
    "settings, embeddings", [(SIGLIP, 4), (CLIP, 4), (changed(CLIP, disable_class_token=False), 5)]
)
def test_embeddings_of_a_tile(settings: VisionConfig, embeddings: int) -> None:
    assert configuration(settings).image_embeddings == embeddings


def test_tokens_of_a_tile_in_its_tower() -> None:
    """A clip tower's class token is one, whether the language model sees it or not."""
    tokens = [(one.patches, one.class_tokens, one.tower_tokens) for one in map(configuration, (SIGLIP, CLIP))]
    assert tokens == [(4, 0, 4), (4, 1, 5)]
    assert configuration(SIGLIP).patch_values == 3 * 8 * 8


@pytest.mark.parametrize(
    ("frozen", "trained", "reached"),
    [
        ((), "vision projector language", "vision projector language"),
        (("tower",), "projector language", "language"),
        (("tower", "projector"), "language", "language"),
        (("tower", "language"), "projector", "language"),
        (("projector",), "vision language", "vision projector language"),
    ],
)
def test_gradients_go_back_as_far_as_something_is_trained(frozen: tuple[str, ...], trained: str, reached: str) -> None:
    """Of a projector behind a frozen tower the input has none, and the rows that experts got need not come back."""
    one = configuration(changed(SIGLIP, **{f"freeze_{part}": True for part in frozen}))
    assert [part for part in PARTS if one.trains(part)] == trained.split()
    assert [part for part in PARTS if one.gradients_reach(part)] == reached.split()
    assert [one.backward_products(part) for part in PARTS] == [
        (part in trained.split()) + (part in reached.split()) for part in PARTS
    ]
