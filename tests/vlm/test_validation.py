"""Settings that exclude vision-language models are refused by name."""

from typing import Any

import pytest

from megatron_compete.common.errors import CompeteError
from tests.vlm.models import SIGLIP, base_transformer, changed

REFUSED: dict[str, dict[str, Any]] = {
    "--tensor-model-parallel-size": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "--context-parallel-size": {"context_parallel_size": 2},
    "virtual pipeline stages": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 1},
    "--mtp-num-layers": {"mtp_num_layers": 1},
    "--hybrid-layer-pattern": {"is_hybrid_model": True},
    "--expert-tensor-parallel-size 2": {"expert_tensor_parallel_size": 2},
    "--moe-token-dispatcher-type allgather": {"moe_token_dispatcher_type": "allgather", "expert_model_parallel_size": 2},
}  # fmt: skip


def check(base: Any, settings: Any = SIGLIP) -> None:
    from megatron_compete.vlm.validation import check_model

    check_model(base, settings)


@pytest.mark.parametrize("flag", REFUSED)
def test_refused_by_name(flag: str) -> None:
    check(base_transformer(expert_model_parallel_size=2, pipeline_model_parallel_size=2))
    with pytest.raises(CompeteError, match=flag):
        check(base_transformer(**REFUSED[flag]))


@pytest.mark.parametrize("name", ["overlap_moe_expert_parallel_comm", "cuda_graph_impl"])
def test_refused_on_a_device(name: str) -> None:
    base = base_transformer()
    setattr(base, name, "transformer_engine")
    with pytest.raises(CompeteError, match=f"--{name.replace('_', '-')}"):
        check(base)


def test_biases_of_unequal_numbers_of_experts() -> None:
    biased = base_transformer(moe_router_enable_expert_bias=True, moe_router_score_function="sigmoid")
    everywhere = changed(SIGLIP, experts_in=("vision", "language"))
    check(biased, everywhere)
    check(biased, changed(SIGLIP, num_experts=2))
    with pytest.raises(CompeteError, match="experts are 4 in the language model and 2 elsewhere"):
        check(biased, changed(everywhere, num_experts=2))


def balanced_by(kinds: str | list[str], **overrides: Any) -> Any:
    coefficients = [0.1] * len(kinds) if isinstance(kinds, list) else 0.0
    return base_transformer(moe_router_load_balancing_type=kinds, moe_aux_loss_coeff=coefficients, **overrides)


@pytest.mark.parametrize("kinds", ["global_aux_loss", ["aux_loss", "global_aux_loss"]])
@pytest.mark.parametrize("part", ["vision", "projector"])
def test_no_balance_over_ranks_of_which_some_have_no_image(kinds: str | list[str], part: Any) -> None:
    with pytest.raises(CompeteError, match=r"--moe-router-load-balancing-type global_aux_loss .* only text"):
        check(balanced_by(kinds), changed(SIGLIP, experts_in=("language", part)))
    check(balanced_by(kinds), changed(SIGLIP, experts_in=("language",)))
    check(balanced_by(["aux_loss", "seq_aux_loss"]), changed(SIGLIP, experts_in=("language", part)))


@pytest.mark.parametrize("part", ["vision", "projector", "language"])
def test_no_quantiles_that_count_fillers(part: Any) -> None:
    with pytest.raises(CompeteError, match="--moe-router-load-balancing-type quantile_balancing counts fillers"):
        check(balanced_by("quantile_balancing"), changed(SIGLIP, experts_in=(part,)))
    check(
        balanced_by("quantile_balancing", num_moe_experts=None, moe_ffn_hidden_size=None),
        changed(SIGLIP, experts_in=(part,)),
    )


def test_frozen_experts_do_not_compete() -> None:
    from megatron_compete.vlm.validation import check_competing

    check_competing(changed(SIGLIP, freeze_language=True))
    with pytest.raises(CompeteError, match="--freeze-ViT keeps the routers in vision from learning who wins"):
        check_competing(changed(SIGLIP, freeze_tower=True))
    check_competing(changed(SIGLIP, freeze_tower=True, experts_in=("projector",)))
