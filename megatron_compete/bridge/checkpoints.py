"""The schedule in Megatron-Bridge's checkpoints. Its trainer imports this module by name (`recipe.CHECKPOINT_MANAGER`)."""

import dataclasses
import json
from typing import Any

import torch
from megatron.bridge.training.checkpointing import (
    CheckpointLoadContext,
    CheckpointSaveContext,
    DefaultCheckpointManager,
)
from megatron.bridge.training.utils.checkpoint_utils import get_checkpoint_name
from megatron.core.msc_utils import maybe_msc

from megatron_compete.bridge.layers import CompetingLayers, layer_spec_field
from megatron_compete.common.errors import CompeteError
from megatron_compete.trainers.same_schedule import follow_saved, say

FILE = "competition.json"
"""In a checkpoint's folder, beside Bridge's `run_config.yaml`: the settings, and the state of the schedule."""


class CompeteCheckpointManager(DefaultCheckpointManager):
    """Bridge's checkpoint manager; checkpoints carry the schedule, and a resumed run continues it.

    It is also where the trainer's state is seen, from which layers take the step: the trainer shows it at each step in
    `finalize_async_saves`, and before the first one in `load`.
    """

    def save(self, ctx: CheckpointSaveContext, callback_manager: Any = None) -> None:
        """Bridge's, then the file of the competition."""
        super().save(ctx, callback_manager)
        checkpoint = ctx.state.cfg.checkpoint
        is_local = ctx.non_persistent_ckpt and checkpoint.non_persistent_ckpt_type == "local"
        if _rank() == 0 and checkpoint.save is not None and not is_local:
            folder = get_checkpoint_name(checkpoint.save, ctx.state.train_state.step)
            with maybe_msc.open(f"{folder}/{FILE}", "w") as file:
                json.dump(_content(_layers(ctx.state)), file, indent=1)

    def load(self, ctx: CheckpointLoadContext) -> tuple[int, int]:
        """Bridge's; where training resumes at the checkpoint's step, its schedule is continued or refused.

        Raises:
            CompeteError: on every rank: this run asks for another schedule than the checkpoint's.
        """
        result = super().load(ctx)
        layers = _layers(ctx.state)
        layers.show(ctx.state)
        if ctx.state.train_state.step > 0 and layers.competition is not None:
            saved = _on_all_ranks(_read(ctx.state.cfg.checkpoint.load, ctx.state.train_state.step))
            if saved is None:
                say(f"the checkpoint has no {FILE}: its competition begins with this run's schedule")
            else:
                follow_saved(layers.competition, saved["schedule"], layers.override_schedule)
        return result

    def finalize_async_saves(self, state: Any, blocking: bool = False, terminate: bool = False) -> None:
        """Bridge's, which is called before each step."""
        _layers(state).show(state)
        super().finalize_async_saves(state, blocking, terminate)


def _layers(state: Any) -> CompetingLayers:
    model = state.cfg.model
    layers = getattr(model, layer_spec_field(model))
    if not isinstance(layers, CompetingLayers):
        raise CompeteError(f"the recipe's {layer_spec_field(model)} was replaced after compete(): call it last")
    return layers


def _content(layers: CompetingLayers) -> dict[str, Any]:
    assert layers.competition is not None
    return {"settings": dataclasses.asdict(layers.settings), "schedule": layers.competition.state_dict()}


def _read(load: str | None, step: int) -> dict[str, Any] | None:
    """The competition's file of the checkpoint that was loaded: `load` is its folder, or that of all."""
    if _rank() != 0 or load is None:
        return None
    for folder in (load, get_checkpoint_name(load, step)):
        if maybe_msc.os.path.exists(f"{folder}/{FILE}"):
            with maybe_msc.open(f"{folder}/{FILE}", "r") as file:
                return json.load(file)
    return None


def _on_all_ranks(of_rank_0: Any) -> Any:
    values = [of_rank_0]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
