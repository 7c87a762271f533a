"""The call that makes a recipe or a provider compete, and what it refuses."""

import copy
import subprocess
import sys
from typing import Any

import pytest

from megatron_compete.bridge import compete, competition_of
from megatron_compete.bridge.layers import CompetingLayers, logger_intervals
from megatron_compete.bridge.recipe import CHECKPOINT_MANAGER
from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from tests.bridge import jobs
from tests.ranks import run_rank

SETTINGS = CompeteConfig(rate=0.5, max_active_layers=2)


def test_importing_needs_no_bridge() -> None:
    code = "import sys, megatron_compete.bridge; assert not [m for m in sys.modules if m.startswith('megatron.bridge')]"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=100)


class Provider:
    """What `compete` touches of a provider."""

    transformer_layer_spec: Any = staticmethod(lambda config: None)

    def register_pre_wrap_hook(self, hook: Any) -> None:
        self.hook = hook


def test_a_provider_needs_a_step_and_is_changed_once() -> None:
    provider = Provider()
    with pytest.raises(CompeteError, match="give current_step"):
        compete(provider, SETTINGS)
    assert compete(provider, SETTINGS, current_step=lambda: 7) is provider
    assert provider.transformer_layer_spec.step() == 7
    with pytest.raises(CompeteError, match="competes already"):
        compete(provider, SETTINGS, current_step=lambda: 7)
    with pytest.raises(CompeteError, match="no competition yet"):
        competition_of(provider)
    with pytest.raises(CompeteError, match="another layer spec"):
        provider.hook([])
    with pytest.raises(CompeteError, match="str has no layer spec"):
        compete("recipe", SETTINGS, current_step=lambda: 7)


def test_a_copied_recipe_has_a_competition_of_its_own() -> None:
    layers = CompetingLayers(SETTINGS, None)
    layers.competition, layers._state = object(), object()  # type: ignore[assignment]
    copied = copy.deepcopy(layers)
    assert copied.settings == SETTINGS and copied.competition is None
    with pytest.raises(CompeteError, match="does not see Megatron-Bridge's step"):
        copied.step()


class Logger:
    """Fields of Bridge's LoggerConfig."""

    skip_train_metrics_log = False
    tensorboard_dir = wandb_project = mlflow_experiment = comet_project = None
    tensorboard_log_interval, log_interval = 4, 6


@pytest.mark.parametrize(
    "changed, expected",
    [
        ({}, [6, 12]),
        ({"tensorboard_dir": "tb"}, [4, 6, 8, 12]),
        ({"mlflow_experiment": "one"}, [4, 6, 8, 12]),
        ({"skip_train_metrics_log": True, "tensorboard_dir": "tb"}, []),
    ],
)
def test_metrics_are_due_when_bridge_logs(changed: dict[str, Any], expected: list[int]) -> None:
    logger = Logger()
    vars(logger).update(changed)
    intervals = logger_intervals(logger)
    assert [iteration for iteration in range(1, 13) if intervals.logs(iteration)] == expected


@pytest.mark.bridge
@pytest.mark.parametrize(
    "model, said",
    [
        ({"moe_enable_routing_replay": True}, "--moe-enable-routing-replay"),
        ({"num_moe_experts": None}, "--num-experts"),
    ],
)
def test_what_excludes_competition_is_refused_by_the_same_list(hf: str, model: dict[str, Any], said: str) -> None:
    assert said in run_rank(refused, hf, model)


def refused(hf: str, model: dict[str, Any]) -> str:
    """What the layer spec says when the model of the recipe is built."""
    from megatron.bridge.training.config import runtime_config_update

    config = compete(jobs.recipe(hf, "unused", {}), SETTINGS)
    runtime_config_update(config)
    for name, value in model.items():
        setattr(config.model, name, value)
    try:
        config.model.transformer_layer_spec(config.model)
    except CompeteError as error:
        return str(error)
    return ""


@pytest.mark.bridge
def test_what_was_replaced_after_the_call_is_noticed(hf: str) -> None:
    own, replaced = run_rank(replaced_parts, hf)
    assert CHECKPOINT_MANAGER in own and "mine.Manager" in own
    assert "transformer_layer_spec was replaced after compete()" in replaced


def replaced_parts(hf: str) -> tuple[str, str]:
    from types import SimpleNamespace

    from megatron.bridge.training.checkpointing import create_checkpoint_manager

    config = jobs.recipe(hf, "unused", {})
    config.checkpoint.custom_manager_class = "mine.Manager"
    with pytest.raises(CompeteError) as own:
        compete(config, SETTINGS)
    config.checkpoint.custom_manager_class = None
    stock = config.model.transformer_layer_spec
    compete(config, SETTINGS)
    config.model.transformer_layer_spec = stock
    manager = create_checkpoint_manager(config.checkpoint)
    with pytest.raises(CompeteError) as replaced:
        manager.finalize_async_saves(SimpleNamespace(cfg=config))
    return str(own.value), str(replaced.value)


@pytest.mark.bridge
def test_a_provider_in_a_loop_of_ones_own(hf: str) -> None:
    layers, scalars = run_rank(own_loop, hf)
    assert layers == 4
    assert scalars["competition/active-layers"] == 2 and "competition/agreement" in scalars


def own_loop(hf: str) -> tuple[int, dict[str, float]]:
    """A provider's model without Bridge's trainer: one step."""
    import torch
    from megatron.bridge.training.model_load_save import temporary_distributed_context
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    provider = jobs.recipe(hf, "unused", {}).model
    compete(provider, SETTINGS, current_step=lambda: 3)
    with temporary_distributed_context(backend="gloo"):
        model_parallel_cuda_manual_seed(1)
        provider.finalize()
        (model,) = provider.provide_distributed_model(wrap_with_ddp=False)
        competition = competition_of(provider)
        tokens = jobs.some_tokens()
        positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
        mask = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        model(tokens, positions, mask, labels=tokens).mean().backward()
        return len(competition.layer_numbers), competition.metrics()


@pytest.mark.bridge
def test_a_hybrid_provider_competes() -> None:
    layers, number = run_rank(hybrid_layers)
    assert layers == ["CompeteMoELayer"] * 2 and number == (2, 4)


def hybrid_layers() -> tuple[list[str], tuple[int, ...]]:
    """The MoE layers of a hybrid model of attention and experts, which needs no Mamba kernels."""
    import torch
    from megatron.bridge.models.hybrid.hybrid_provider import HybridModelProvider
    from megatron.bridge.training.model_load_save import temporary_distributed_context
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from megatron_compete.launch.cpu_modules import LOCAL_HYBRID

    provider = HybridModelProvider(
        hybrid_layer_pattern="*E*E", hidden_size=32, num_attention_heads=4, num_moe_experts=4, moe_router_topk=2,
        moe_ffn_hidden_size=24, ffn_hidden_size=24, vocab_size=64, seq_length=16, bf16=False, params_dtype=torch.float32,
        use_cpu_initialization=True, gradient_accumulation_fusion=False, moe_grouped_gemm=False,
        apply_rope_fusion=False, bias_dropout_fusion=False, moe_aux_loss_coeff=0.0,
        hybrid_stack_spec=LOCAL_HYBRID,
    )  # fmt: skip
    compete(provider, SETTINGS, current_step=lambda: 0)
    with temporary_distributed_context(backend="gloo"):
        model_parallel_cuda_manual_seed(1)
        provider.finalize()
        (model,) = provider.provide_distributed_model(wrap_with_ddp=False)
        names = [type(layer.mlp).__name__ for layer in model.modules() if type(layer).__name__ == "MoETransformerLayer"]
        return names, competition_of(provider).layer_numbers
