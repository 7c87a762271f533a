"""What tower and projector take of the language model's settings, and what is refused."""

from typing import Any

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from tests.vlm.models import CLIP, SIGLIP, base_transformer, changed, configuration


def test_parts_have_their_own_shapes() -> None:
    config = configuration(changed(SIGLIP, num_experts=2), params_dtype=torch.bfloat16, moe_z_loss_coeff=0.25)
    tower, projector, language = config.tower, config.projector, config.transformer
    assert (tower.num_layers, tower.hidden_size, tower.ffn_hidden_size, tower.kv_channels) == (2, 16, 24, 8)
    assert (projector.num_layers, projector.hidden_size, projector.ffn_hidden_size) == (1, 32, 32)
    assert (tower.layernorm_epsilon, tower.normalization) == (1e-6, "LayerNorm")
    for part in (tower, projector):
        assert (part.num_moe_experts, part.moe_ffn_hidden_size) == (2, part.ffn_hidden_size)
        assert part.add_bias_linear and not part.gated_linear_unit
        assert (part.params_dtype, part.moe_z_loss_coeff, part.moe_router_topk) == (torch.bfloat16, 0.25, 2)
    assert language.num_moe_experts is None and language.normalization == "RMSNorm"


def test_a_part_without_experts_is_dense_under_expert_parallelism() -> None:
    config = configuration(changed(SIGLIP, experts_in=("projector",)), expert_model_parallel_size=2)
    sizes = [part.expert_model_parallel_size for part in (config.tower, config.projector, config.transformer)]
    assert sizes == [1, 2, 1] and config.tower.num_moe_experts is None


@pytest.mark.parametrize(
    "settings, name", [(SIGLIP, "gelu_pytorch_tanh"), (CLIP, "quick_gelu")], ids=["siglip", "clip"]
)
def test_activations_are_transformers(settings: Any, name: str) -> None:
    from transformers.activations import ACT2FN

    config, values = configuration(settings), torch.linspace(-6, 6, 1001)
    assert torch.allclose(config.tower.activation_func(values), ACT2FN[name](values), rtol=0, atol=1e-6)
    assert torch.equal(config.projector.activation_func(values), ACT2FN["gelu"](values))


def test_recomputation_is_the_towers_where_it_is_asked_for() -> None:
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    assert configuration(SIGLIP, **full).tower.recompute_granularity is None
    assert configuration(changed(SIGLIP, recompute=True), **full).tower.recompute_method == "uniform"


def test_a_model_without_experts_is_dense_in_all_parts() -> None:
    assert configuration(SIGLIP, num_moe_experts=None, moe_ffn_hidden_size=None).with_experts == ()


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no recomputation": ({"recompute": True}, {}, "--recompute-vision has no effect without --recompute-granularity"),
    "other modules": (
        {"recompute": True},
        {"recompute_granularity": "selective", "recompute_modules": ["shared_experts"]},
        "--recompute-vision has no effect with --recompute-modules shared_experts",
    ),
    "experts of no rank": (
        {"num_experts": 3}, {"expert_model_parallel_size": 2}, "3 experts in vision do not divide among",
    ),
    "groups": (
        {"num_experts": 3}, {"moe_router_num_groups": 2, "moe_router_group_topk": 1}, "--moe-router-num-groups 2",
    ),
    "too many winners": ({"router_topk": 5}, {}, "is more than the 4 experts in vision"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_what_to_do(case: str) -> None:
    from megatron_compete.vlm.transformers import tower_transformer

    settings, base, message = REFUSED[case]
    with pytest.raises(CompeteError, match=message):
        tower_transformer(base_transformer(**base), changed(SIGLIP, **settings))
