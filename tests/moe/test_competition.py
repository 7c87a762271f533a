"""Where competing layers lie, against Megatron's own count of layers and their offset on each stage."""

import pytest
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition, decoder_stage_chunks, moe_stage_chunks

LAYOUTS: dict[str, dict] = {
    "one-stage": dict(num_layers=3, pipeline_model_parallel_size=1),
    "even": dict(num_layers=8, pipeline_model_parallel_size=4),
    "interleaved": dict(num_layers=12, pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=3),
    "short-ends": dict(
        num_layers=9, pipeline_model_parallel_size=3, num_layers_in_first_pipeline_stage=2,
        num_layers_in_last_pipeline_stage=3,
    ),
    "short-first-interleaved": dict(
        num_layers=10, pipeline_model_parallel_size=3, virtual_pipeline_model_parallel_size=2,
        num_layers_in_first_pipeline_stage=2,
    ),
    "embedding-and-loss": dict(
        num_layers=6, pipeline_model_parallel_size=4, account_for_embedding_in_pipeline_split=True,
        account_for_loss_in_pipeline_split=True,
    ),
}  # fmt: skip


def config_of(layout: dict) -> TransformerConfig:
    return TransformerConfig(
        hidden_size=16, num_attention_heads=2, num_moe_experts=2, pipeline_dtype="fp32", add_bias_linear=False, **layout
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_places_are_where_megatron_builds_the_layers(name: str) -> None:
    config = config_of(LAYOUTS[name])
    expected = {}
    virtual = config.virtual_pipeline_model_parallel_size
    for stage in range(config.pipeline_model_parallel_size):
        for chunk in range(virtual or 1):
            vp_stage = chunk if virtual else None
            first = get_transformer_layer_offset(config, vp_stage, stage)
            for layer in range(get_num_layers_to_build(config, vp_stage, stage)):
                expected[first + layer] = (stage, chunk)
    assert dict(enumerate(decoder_stage_chunks(config))) == expected


def test_a_layout_in_letters() -> None:
    """Stages in order; the next letters fill the next chunk of each stage."""
    config = config_of(
        dict(num_layers=5, pipeline_model_parallel_size=2, pipeline_model_parallel_layout="Et|t|tt|tL")
    )  # fmt: skip
    assert decoder_stage_chunks(config) == ((0, 0), (1, 0), (0, 1), (0, 1), (1, 1))


def test_only_layers_with_experts_compete() -> None:
    config = config_of(dict(num_layers=6, pipeline_model_parallel_size=2, moe_layer_freq=[0, 1, 1, 0, 1, 1]))
    assert moe_stage_chunks(config) == ((0, 0), (0, 0), (1, 0), (1, 0))
    competition = Competition.of_model(CompeteConfig(), config, lambda: 0)
    assert competition.layer_numbers == (2, 3, 5, 6)
    assert competition.schedule.policy == "balanced" and competition.schedule.stage_chunks == (
        (0, 0),
        (0, 0),
        (1, 0),
        (1, 0),
    )
