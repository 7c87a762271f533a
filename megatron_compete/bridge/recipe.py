"""The call that makes a recipe or a provider of Megatron-Bridge compete. Nothing of it is imported before."""

from collections.abc import Callable
from typing import Any

from megatron_compete.bridge.layers import CompetingLayers, layer_spec_field
from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.trainers import ModelCompetition

CHECKPOINT_MANAGER = "megatron_compete.bridge.checkpoints.CompeteCheckpointManager"


def compete[Recipe](
    recipe: Recipe,
    settings: CompeteConfig | None = None,
    *,
    current_step: Callable[[], int] | None = None,
    override_schedule: bool = False,
) -> Recipe:
    """Have the MoE layers of a Megatron-Bridge recipe, or of a provider, compete.

    The layers are the recipe's own, with `MoELayer` replaced. Its trainer then logs the competition's metrics to
    TensorBoard, wandb, MLflow and Comet as it logs Megatron's of MoE layers, and keeps the schedule in its checkpoints.

        config = qwen3_30b_a3b_pretrain_16gpu_h100_bf16_config()
        pretrain(compete(config, CompeteConfig(rate=0.05)), forward_step)

    Args:
        recipe: its ConfigContainer, or a provider (a TransformerConfig that provides a model) for a trainer of your own.
            It is changed in place. Layouts and other settings may still change until the model is built.
        settings: of the competition; default the paper's.
        current_step: for a provider: returns the step in progress, from 0. A recipe's is its `train_state.step`.
        override_schedule: on resuming, take this schedule where the checkpoint's is another.
    Returns:
        The recipe.
    Raises:
        CompeteError: the recipe competes already, or has a checkpoint manager of its own. What excludes competition is
            refused when the model is built.
    """
    is_provider = not hasattr(recipe, "checkpoint")
    model: Any = recipe if is_provider else recipe.model  # type: ignore[attr-defined]
    if is_provider and current_step is None:
        raise CompeteError("a provider alone has no step: give current_step, or the recipe (ConfigContainer) it is in")
    field = layer_spec_field(model)
    stock = getattr(model, field)
    if isinstance(stock, CompetingLayers):
        raise CompeteError("this recipe competes already: call compete() once, with the settings that are to hold")
    layers = CompetingLayers(settings or CompeteConfig(), stock, current_step, override_schedule)
    if not is_provider:
        _use_checkpoint_manager(recipe)
    setattr(model, field, layers)
    _add_hook(model, layers.check_model)
    return recipe


def competition_of(recipe: Any) -> ModelCompetition:
    """The competition of a recipe or a provider whose model was built.

    Raises:
        CompeteError: `compete` was not called with it, or its model is not built.
    """
    model = getattr(recipe, "model", recipe)
    layers = getattr(model, layer_spec_field(model))
    if not isinstance(layers, CompetingLayers) or layers.competition is None:
        raise CompeteError("there is no competition yet: call compete(), and have the model built")
    return layers.competition


def _use_checkpoint_manager(recipe: Any) -> None:
    """Have the recipe's checkpoints kept by ours; its trainer makes one by name."""
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix

    given = recipe.checkpoint.custom_manager_class
    if given not in (None, CHECKPOINT_MANAGER):
        raise CompeteError(
            f"checkpoint.custom_manager_class {given} would not keep the schedule: derive it from {CHECKPOINT_MANAGER}, "
            "and name it after calling compete()"
        )
    recipe.checkpoint.custom_manager_class = CHECKPOINT_MANAGER
    register_allowed_target_prefix("megatron_compete.")


def _add_hook(model: Any, hook: Callable[..., Any]) -> None:
    """Called with the model's chunks when they are built."""
    if hasattr(model, "register_pre_wrap_hook"):
        model.register_pre_wrap_hook(hook)
    else:
        model.pre_wrap_hooks.append(hook)
