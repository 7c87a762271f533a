"""Where competing layers lie, against Megatron's own count of layers and their offset on each stage."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from megatron.core.models.hybrid.hybrid_layer_allocation import parse_hybrid_pattern, select_pipeline_segment
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition, competing_layers, decoder_stage_chunks, moe_stage_chunks
from tests.ranks import run_ranks

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


def test_a_dense_model_has_no_layer_that_could_compete() -> None:
    config = config_of(dict(num_layers=2))
    config.num_moe_experts = None
    assert competing_layers(config) == ()
    with pytest.raises(CompeteError, match="no layer can compete"):
        Competition.of_model(CompeteConfig(), config, lambda: 0)


HYBRID: dict[str, dict[str, Any]] = {
    "ME*E-": dict(),
    "ME*E|-E*E|M|EE": dict(pipeline_model_parallel_size=2),
    "*E|/*E/*E": dict(pipeline_model_parallel_size=2),
    "MEME*E": dict(pipeline_model_parallel_size=3),
    "MEMEEE-E": dict(
        pipeline_model_parallel_size=3, num_layers_in_first_pipeline_stage=1, num_layers_in_last_pipeline_stage=4
    ),
}


@pytest.mark.parametrize("pattern", HYBRID)
def test_hybrid_layers_are_where_megatron_selects_them(pattern: str) -> None:
    """Against upstream's `select_pipeline_segment`, which each stage asks for itself."""
    config = config_of(dict(num_layers=1) | HYBRID[pattern])
    stages = config.pipeline_model_parallel_size
    main = parse_hybrid_pattern(pattern).main_pattern
    assert main is not None
    expected = []
    for stage in range(stages):
        for chunk in range(max(1, (main.count("|") + 1) // stages)):
            with (
                mock.patch.object(torch.distributed, "get_rank", lambda group, stage=stage: stage),
                mock.patch.object(torch.distributed, "get_world_size", lambda group: stages),
                mock.patch("megatron.core.models.hybrid.hybrid_layer_allocation.log_on_each_pipeline_stage"),
                mock.patch("megatron.core.models.hybrid.hybrid_layer_allocation.log_single_rank"),
            ):
                kinds, offset = select_pipeline_segment(
                    main, object(), chunk if chunk else None, config.num_layers_in_first_pipeline_stage,
                    config.num_layers_in_last_pipeline_stage,
                )  # fmt: skip
            expected += [(offset + i, (stage, chunk)) for i, kind in enumerate(kinds, start=1) if kind == "E"]
    assert list(competing_layers(config, pattern)) == sorted(expected)
    assert competing_layers(SimpleNamespace(transformer=config, hybrid_layer_pattern=pattern)) == tuple(
        sorted(expected)
    )


def built_layers(layout: dict[str, Any]) -> dict[int, tuple[int, int]]:
    """`layer_number` -> stage and chunk of the decoder's MoE layers that Megatron builds on this rank."""
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.training.models.dist_utils import build_virtual_pipeline_stages
    from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

    torch.distributed.init_process_group("gloo")
    config = config_of(layout)
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=config.virtual_pipeline_model_parallel_size,
    )
    model_parallel_cuda_manual_seed(1)
    builder = GPTModelBuilder(GPTModelConfig(transformer=config, vocab_size=64, seq_length=8))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    chunks = build_virtual_pipeline_stages(builder.build_model, groups, config.virtual_pipeline_model_parallel_size)
    return {
        module.layer_number: (groups.pp.rank(), chunk)
        for chunk, model in enumerate(chunks)
        for module in model.decoder.modules()
        if isinstance(module, MoELayer)
    }


BUILT: dict[str, dict[str, Any]] = {
    "in letters, with prediction of later tokens": dict(
        num_layers=5, pipeline_model_parallel_size=2, pipeline_model_parallel_layout="Et|t|tt|tmL", mtp_num_layers=1,
        moe_layer_freq=[0, 1, 1, 0, 1],
    ),
    "uneven": dict(num_layers=4, pipeline_model_parallel_size=2, num_layers_in_first_pipeline_stage=1),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_numbers_are_those_of_the_built_modules(name: str) -> None:
    layout = dict(transformer_impl="local", use_cpu_initialization=True) | BUILT[name]
    built = {number: place for rank in run_ranks(2, built_layers, layout) for number, place in rank.items()}
    assert built == dict(competing_layers(config_of(layout)))
