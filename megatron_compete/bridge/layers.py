"""What stands in the layer spec of a Megatron-Bridge recipe that competes."""

import copy
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.metrics import LogIntervals
from megatron_compete.moe.specs import compete_hybrid_spec, compete_layer_spec
from megatron_compete.trainers import ModelCompetition

LAYER_SPEC, HYBRID_SPEC = "transformer_layer_spec", "hybrid_stack_spec"


def layer_spec_field(model: Any) -> str:
    """The field of a provider (or of Bridge's model configurations) that its layers are built from."""
    for name in (HYBRID_SPEC, LAYER_SPEC):
        if hasattr(model, name):
            return name
    raise CompeteError(
        f"{type(model).__name__} has no layer spec to compete in: give a provider of a GPT or hybrid model"
    )


class CompetingLayers:
    """The recipe's own layer spec with every `MoELayer` replaced; called when the model is built.

    Args:
        settings: of the competition.
        stock: what stood in the field: a spec, what makes one, or None for the provider's default.
        current_step: the step in progress, where it is not the `train_state.step` of Bridge's trainer.
        override_schedule: keep this run's schedule on resuming.
    """

    def __init__(
        self,
        settings: CompeteConfig,
        stock: Any,
        current_step: Callable[[], int] | None = None,
        override_schedule: bool = False,
    ) -> None:
        self.settings = settings
        self.stock = stock
        self.current_step = current_step
        self.override_schedule = override_schedule
        self.competition: ModelCompetition | None = None
        """Of the model that was built; layouts are settled then."""
        self._state: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "CompetingLayers":
        """That of a copied recipe: another model with another trainer."""
        memo[id(self)] = copied = CompetingLayers(
            self.settings, copy.deepcopy(self.stock, memo), self.current_step, self.override_schedule
        )
        return copied

    def to_cfg_dict(self) -> Any:
        """The stock spec: a trained model has ordinary MoE layers, and tools that read a checkpoint's configuration
        build those (upstream: `ConfigContainerBase.to_dict`)."""
        from megatron.training.config.container import ConfigContainerBase

        return ConfigContainerBase._convert_value_to_dict(self.stock)

    def __call__(self, model: Any, vp_stage: int | None = None) -> Any:
        """The spec of the layers of this pipeline stage.

        Args:
            model: the provider, or Bridge's model configuration.
        Raises:
            CompeteError: a setting that excludes competition, or a schedule that cannot be met.
        """
        if self.competition is None:
            self.competition = ModelCompetition(self.settings, model, self.step)
        if layer_spec_field(model) == HYBRID_SPEC:
            return compete_hybrid_spec(model, competition=self.competition, stock=self._stock_hybrid_spec(model))
        stock = functools.partial(_made, self.stock)
        return compete_layer_spec(model, vp_stage, competition=self.competition, stock=stock)

    def _stock_hybrid_spec(self, model: Any) -> ModuleSpec:
        if self.stock is not None:
            return _made(self.stock, model, None)
        from megatron.bridge.models.hybrid.hybrid_provider import get_default_hybrid_stack_spec

        return get_default_hybrid_stack_spec(model)

    def check_model(self, model: list[Any]) -> list[Any]:
        """`ModelCompetition.check_model`, for Bridge to call when the model is built."""
        if self.competition is None:
            raise CompeteError(
                "the model was built from another layer spec than the competing one: call compete() last"
            )
        return self.competition.check_model(model)

    def show(self, state: Any) -> None:
        """Take the step and the intervals of logging from the state of Bridge's trainer (its `GlobalState`)."""
        if self._state is not state and self.competition is not None:
            self.competition.recorder.intervals = logger_intervals(state.cfg.logger)
            self._state = state

    def step(self) -> int:
        """The step in progress, from 0."""
        if self.current_step is not None:
            return self.current_step()
        if self._state is None:
            raise CompeteError(
                "competition does not see Megatron-Bridge's step: its checkpoint manager was replaced. Change "
                "recipe.checkpoint before compete() is called"
            )
        return self._state.train_state.step


def logger_intervals(logger: Any) -> LogIntervals:
    """When Bridge's trainer logs by its LoggerConfig. Writers are on the last rank alone, the settings on all."""
    if logger.skip_train_metrics_log:
        return LogIntervals(None, sys.maxsize)
    written = (logger.tensorboard_dir, logger.wandb_project, logger.mlflow_experiment, logger.comet_project)
    return LogIntervals(logger.tensorboard_log_interval if any(written) else None, logger.log_interval)


def _made(stock: Any, model: Any, vp_stage: int | None) -> Any:
    """The spec that a provider makes of its field (upstream: `GPTModelProvider.provide`, `HybridModelProvider`)."""
    if not callable(stock) or isinstance(stock, ModuleSpec):
        return stock
    parameters = inspect.signature(stock).parameters
    if "vp_stage" in parameters:
        return stock(model, vp_stage=vp_stage)
    return stock(model) if parameters else stock()
