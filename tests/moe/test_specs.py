"""Layer specs and what they refuse."""

import functools
from typing import Any

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout, initialize, transformer_config
from tests.ranks import run_rank


def layer_kinds() -> list[list[str]]:
    """Kinds of MLP in the specs of a model with two dense layers in five, and of Megatron's own afterwards."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    from megatron_compete.moe.competition import Competition, moe_layer_numbers
    from megatron_compete.moe.specs import compete_layer_spec

    initialize(Layout())
    config = transformer_config(Layout(), num_layers=5, moe_layer_freq=[0, 1, 1, 0, 1], transformer_impl="local")
    assert moe_layer_numbers(config) == (2, 3, 5)
    competition = Competition(CompeteConfig(), moe_layer_numbers(config), lambda: 0)
    ours = compete_layer_spec(config, competition=competition)
    stock = get_gpt_decoder_block_spec(config, use_transformer_engine=False)
    return [
        [mlp.func.__name__ if isinstance(mlp, functools.partial) else type(mlp).__name__ for mlp in mlps]
        for mlps in ([spec.submodules.mlp for spec in block.layer_specs] for block in (ours, stock))
    ]


def test_only_moe_layers_are_replaced_and_megatrons_specs_stay() -> None:
    ours, stock = run_rank(layer_kinds)
    assert [kind == "CompeteMoELayer" for kind in ours] == [False, True, True, False, True]
    assert [kind == "MoELayer" for kind in stock] == [False, True, True, False, True]


REFUSED: dict[str, dict[str, Any]] = {
    "--moe-enable-routing-replay": dict(moe_enable_routing_replay=True),
}
NEEDS_CUDA: dict[str, dict[str, Any]] = {
    "--te-precision-config-file": dict(quant_recipe=object()),
    "--use-transformer-engine-op-fuser": dict(use_transformer_engine_op_fuser=True),
}
"""Settings that Megatron's own configuration accepts only where Transformer Engine is installed."""


@pytest.mark.parametrize("flag", REFUSED)
def test_refusals_name_the_flag(flag: str) -> None:
    from megatron_compete.moe.validation import check_supported

    with pytest.raises(CompeteError, match=f"{flag} does not work with competition routing"):
        check_supported(transformer_config(Layout(), **REFUSED[flag]), CompeteConfig())


@pytest.mark.parametrize("flag", NEEDS_CUDA)
def test_refusals_of_settings_for_cuda(flag: str) -> None:
    from megatron_compete.moe.validation import check_supported

    config = transformer_config(Layout())
    for name, value in NEEDS_CUDA[flag].items():
        assert hasattr(config, name)
        setattr(config, name, value)
    with pytest.raises(CompeteError, match=f"{flag} does not work with competition routing"):
        check_supported(config, CompeteConfig())


def test_whoever_pads_fp8_tokens_is_allowed() -> None:
    from megatron_compete.moe.validation import check_supported

    config = transformer_config(Layout())
    config.fp8, config.moe_token_dispatcher_type, config.moe_router_padding_for_quantization = "hybrid", "flex", True
    for backend in ("deepep", "hybridep", "ncclep"):
        config.moe_flex_dispatcher_backend = backend
        check_supported(config, CompeteConfig())
    config.fp8_param = True
    with pytest.raises(CompeteError, match="--fp8-param-gather keeps in FP8"):
        check_supported(config, CompeteConfig(response_gradients="all"))


def test_gradients_for_all_responses_need_activations_that_are_kept() -> None:
    from megatron_compete.moe.validation import check_supported

    config = transformer_config(Layout())
    config.recompute_granularity, config.recompute_modules = "selective", ["moe_act"]
    check_supported(config, CompeteConfig())
    with pytest.raises(CompeteError, match="leave moe_act out of --recompute-modules"):
        check_supported(config, CompeteConfig(response_gradients="all"))


def test_gradients_for_all_responses_need_one_backward_pass_of_the_experts() -> None:
    from megatron_compete.moe.validation import check_supported

    config = transformer_config(Layout())
    for flag in ("overlap_moe_expert_parallel_comm", "overlap_dispatch_backward_with_experts_wgrad"):
        setattr(config, flag, True)
        check_supported(config, CompeteConfig())
        with pytest.raises(CompeteError, match=rf"--{flag.replace('_', '-')} .*leave one of the two out"):
            check_supported(config, CompeteConfig(response_gradients="all"))
        setattr(config, flag, False)


def test_replayed_routing_leaves_utility_its_tokens() -> None:
    from megatron_compete.moe.validation import check_supported

    check_supported(transformer_config(Layout(), moe_enable_routing_replay=True), CompeteConfig(kind="utility"))


def test_every_refusal_reads_a_real_setting() -> None:
    """A flag that Megatron renames must not turn its refusal into an error or a silence."""
    from megatron_compete.moe.validation import REFUSALS

    config = transformer_config(Layout())
    assert not any(refusal.applies(config) for refusal in REFUSALS)


def test_more_winners_than_experts_and_unknown_responses_are_refused() -> None:
    from megatron_compete.moe.validation import check_supported

    config = transformer_config(Layout())
    with pytest.raises(CompeteError, match="--compete-response cosine is out of range: choose from softplus, l2"):
        check_supported(config, CompeteConfig(response="cosine"))
    config.moe_router_topk = EXPERTS + 1
    with pytest.raises(CompeteError, match=f"--moe-router-topk {EXPERTS + 1} is more than --num-experts {EXPERTS}"):
        check_supported(config, CompeteConfig())


def test_utility_refuses_what_it_cannot_add_to() -> None:
    from megatron_compete.moe.validation import check_supported

    utility = CompeteConfig(kind="utility")
    missing = CompeteConfig(kind="utility", utility_gradient="missing")
    pre_softmax = transformer_config(Layout(), moe_router_pre_softmax=True)
    for config, compete in (
        (transformer_config(Layout()), missing),
        (pre_softmax, utility),
        (pre_softmax, CompeteConfig()),
    ):
        check_supported(config, compete)
    with pytest.raises(
        CompeteError, match="--compete-utility-gradient missing would count twice with --moe-router-pre-"
    ):
        check_supported(pre_softmax, missing)
    everyone = transformer_config(Layout(), moe_router_topk=EXPERTS)
    check_supported(everyone, CompeteConfig())
    with pytest.raises(
        CompeteError, match=f"--compete-kind utility has nothing to add where --moe-router-topk {EXPERTS}"
    ):
        check_supported(everyone, utility)


def built_by_any_trainer() -> int:
    """`--spec megatron_compete.training.spec compete_layer_spec` in a trainer that knows nothing of competition."""
    from argparse import Namespace

    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.transformer.spec_utils import import_module
    from megatron.training.global_vars import set_args
    from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

    from megatron_compete.moe.layer import CompeteMoELayer

    initialize(Layout())
    model_parallel_cuda_manual_seed(1)
    set_args(
        Namespace(curr_iteration=0, tensorboard_dir=None, wandb_project="", tensorboard_log_interval=1, log_interval=1)
    )
    config = GPTModelConfig(
        transformer=transformer_config(Layout(), num_layers=2, ffn_hidden_size=FFN, transformer_impl="local"),
        transformer_layer_spec=import_module(["megatron_compete.training.spec", "compete_layer_spec"]),
        vocab_size=64, seq_length=8, position_embedding_type="rope",
    )  # fmt: skip
    model = GPTModelBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups(), True, True)
    tokens = torch.randint(64, (2, 8))
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).triu(1)
    loss = model(tokens, torch.arange(8).expand(2, 8), mask, labels=tokens)
    loss.mean().backward()
    assert model.decoder.layers[0].mlp.router.weight.shape == (EXPERTS, HIDDEN)
    return sum(isinstance(module, CompeteMoELayer) for module in model.modules())


def test_spec_works_in_a_foreign_trainer() -> None:
    assert run_rank(built_by_any_trainer) == 2
