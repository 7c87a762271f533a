"""The competition of one model, with all that its trainer asks of it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from megatron.core.utils import get_model_config

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.moe.competition import Competition, competing_layers, experts_by_layer, parts_of
from megatron_compete.moe.layer import CompeteMoELayer
from megatron_compete.moe.metrics import CompetitionMetrics, LayerCounts, LogIntervals, install_metrics
from megatron_compete.moe.validation import check_all_parts
from megatron_compete.trainers.same_schedule import (
    check_agreement,
    communication_device,
    follow_saved,
    say,
    say_capped,
    schedule_state,
)


class ModelCompetition(Competition):
    """Competition in a model that some trainer trains; one in a process.

    A trainer builds the model from `moe.specs.compete_layer_spec(config, competition=this)`, calls `check_model` once
    the model is built, asks for `metrics()` after a step, and keeps `state_dict()` in its checkpoints.

    Args:
        config: the settings.
        model: the model's TransformerConfig as it is trained, with its parallel sizes, or a configuration that has one in
            `transformer`; a hybrid model's has its `hybrid_layer_pattern`.
        current_step: returns the step in progress, counted from 0 over the whole training (not from the resume); the
            same on all ranks.
        intervals: at which iterations (the step + 1) metrics are recorded; default every one.
    Raises:
        CompeteError: a setting that excludes competition, or a schedule that cannot be met.
    """

    def __init__(
        self,
        config: CompeteConfig,
        model: Any,
        current_step: Callable[[], int],
        intervals: LogIntervals | None = None,
    ) -> None:
        self.transformers = [part.transformer for part in parts_of(model)]
        check_all_parts(model, config)
        layers = competing_layers(model)
        if not layers:
            raise CompeteError("no layer can compete, for the model has none with experts: give --num-experts")
        numbers, stage_chunks = zip(*layers, strict=True)
        super().__init__(config, numbers, current_step, stage_chunks)
        self.recorder: CompetitionMetrics = install_metrics(
            self, experts_by_layer(model), intervals or LogIntervals(), LayerCounts.of(model)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelCompetition":
        """Itself: layers share one, also where a trainer copies their spec."""
        return self

    def check_model[Chunks: Iterable[torch.nn.Module]](self, model: Chunks) -> Chunks:
        """Stop unless the model competes as it should; a collective of all ranks.

        A layer spec that was replaced or not found would otherwise train Megatron's own layers without a word.

        Args:
            model: this rank's model chunks.
        Returns:
            The same, as trainers want it of a hook.
        Raises:
            CompeteError: on every rank: other layers compete than should, their losses would not be scaled, or the ranks'
                schedules differ.
        """
        self._check_layers(model)
        say(f"{len(self.layer_numbers)} layers compete")
        self.check_schedule()
        return model

    def check_schedule(self) -> None:
        """Stop unless all ranks have the same schedule, and print it; a collective of all ranks.

        Raises:
            CompeteError: on every rank, with the settings that differ.
        """
        say_capped(self)
        check_agreement(self)
        say(f"schedule {self.schedule.describe()}")

    def _check_layers(self, model: Iterable[torch.nn.Module]) -> None:
        chunks = list(model)
        modules = [module for chunk in chunks for module in chunk.modules() if isinstance(module, CompeteMoELayer)]
        here = {module.layer_number for module in modules if not module.is_mtp_layer}
        unscaled = bool(modules) and not all(_scales_losses(chunk) for chunk in chunks)
        found = torch.tensor([*(number in here for number in self.layer_numbers), unscaled], dtype=torch.int32)
        if torch.distributed.is_initialized():
            found = found.to(communication_device())
            torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        found, any_unscaled = found[:-1], bool(found[-1])
        if not found.all():
            raise CompeteError(
                f"the model has {int(found.sum())} competing layers instead of {len(found)}: its spec was replaced"
            )
        if any_unscaled:
            raise CompeteError(
                "the model has competing layers, and its own config has num_moe_experts None: Megatron-Core would not "
                "divide their losses by the number of microbatches. Set model.config.num_moe_experts once it is built"
            )

    def metrics(self, num_microbatches: int = 1, per_layer: bool = False) -> dict[str, float]:
        """What routers and competition did at the step in progress: the scalars that Megatron's trainers log of it.

        A collective of all ranks, to be called once after each step, before `current_step` moves on. Megatron's own
        losses of its routers are among them; its record of them is emptied.

        Args:
            num_microbatches: of the step, over which losses are means.
            per_layer: those of each layer as well.
        Returns:
            {tag: value}, see the reference's metrics page; `competition/active-layers` is there at every logged step.
        """
        scalars = _Scalars()
        num_layers = sum(transformer.num_layers for transformer in self.transformers)
        self.recorder.report(
            1.0 / num_microbatches,
            self.recorder.iteration(),
            scalars,
            None,
            per_layer,
            force_initialize=True,
            track_names=_loss_names(self.transformers[-1]),
            num_layers=num_layers,
            moe_layer_freq=[number in self.layer_numbers for number in range(1, num_layers + 1)],
            mtp_num_layers=self.transformers[-1].mtp_num_layers,
        )
        return dict(scalars)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep: the schedule's settings and a digest of its table, as plain values."""
        return schedule_state(self.schedule)

    def load_state_dict(self, state: dict[str, Any], override: bool = False) -> None:
        """Continue the schedule of a checkpoint; a collective of all ranks.

        Args:
            state: its `state_dict()`.
            override: keep this run's schedule, and print where it differs from the checkpoint's.
        Raises:
            CompeteError: this run asks for another schedule, or its numpy draws another table.
        """
        follow_saved(self, state, override)


def _scales_losses(chunk: torch.nn.Module) -> bool:
    """Whether Megatron-Core's schedules scale the losses of routers in this model chunk, which they ask its config; layers
    may have another (upstream: `forward_step_calc_loss`)."""
    return get_model_config(chunk).num_moe_experts is not None


class _Scalars(dict[str, float]):
    """A writer as TensorBoard's, of the scalars of one step."""

    def add_scalar(self, tag: str, value: Any, iteration: int) -> None:
        self[tag] = float(value)


def _loss_names(transformer: Any) -> list[str]:
    """Losses that Megatron's routers record; all ranks must name the same (upstream: `training_log`)."""
    kinds = transformer.moe_router_load_balancing_type
    kinds = [kinds] if isinstance(kinds, str) else kinds
    names = {
        "aux_loss": "load_balancing_loss",
        "seq_aux_loss": "seq_load_balancing_loss",
        "global_aux_loss": "global_load_balancing_loss",
    }
    losses = [name for kind, name in names.items() if kind in kinds]
    return losses + (["z_loss"] if transformer.moe_z_loss_coeff is not None else [])
