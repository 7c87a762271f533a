"""Pretraining with competition routing.

    torchrun --nproc-per-node 8 -m megatron_compete.training.pretrain MEGATRON_ARGUMENTS [--compete-rate 0.07 ...]

srun and mpirun start it as well. The trainer is `megatron.training.pretrain`, unchanged; this module hands it the model,
the datasets and the forward step. `megatron-compete pretrain --recipe FILE` runs it from a recipe.
"""

from megatron_compete.launch.stop_signal import leave_on_stop_signal, rank_from_launcher

if __name__ == "__main__":
    leave_on_stop_signal()  # what follows takes longer to import than some batch systems wait

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from megatron.core.enums import ModelType
from megatron.training import pretrain
from megatron.training.argument_utils import (
    pretrain_cfg_container_from_args,
)

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.environment import enter_launch
from megatron_compete.launch.launchers import environment_defaults
from megatron_compete.moe.loss_tokens import forget_loss_tokens
from megatron_compete.resilience.agreement import on_rank_0
from megatron_compete.resilience.devices import settle_device
from megatron_compete.resilience.progress import written_progress
from megatron_compete.resilience.reliability import reliable
from megatron_compete.resilience.resuming.event_log import one_curve
from megatron_compete.resilience.resuming.optimizer import any_expert_layout
from megatron_compete.resilience.resuming.schedule import keep_schedule
from megatron_compete.resilience.stopping.leave import refuse_once, run_rank
from megatron_compete.trainers import ModelCompetition
from megatron_compete.training.batches import forward_step
from megatron_compete.training.data_check import check_data
from megatron_compete.training.dataset_helpers import use_prebuilt_helpers
from megatron_compete.training.datasets import build_datasets, embedding_ranks
from megatron_compete.training.flops import counted_scoring
from megatron_compete.training.model import model_and_competition
from megatron_compete.training.mtp_of_variants import predicting_like_the_last_layer
from megatron_compete.training.parse import parse_arguments
from megatron_compete.training.probe_log import probed_steps
from megatron_compete.training.vlm import batches as vlm_batches
from megatron_compete.training.vlm import datasets as vlm_datasets
from megatron_compete.training.vlm.flops import counted_vision, vision_scoring
from megatron_compete.training.vlm.model import VisionLanguageModelConfig


@dataclass(frozen=True)
class Task:
    """What differs between kinds of models: how their data are checked and read, and what a microbatch is."""

    check_data: Callable[[argparse.Namespace], str | None]
    """Returns what a checkpoint keeps of the data, for a run that goes on to compare with."""
    build_datasets: Callable[..., Any]
    forward_step: Callable[..., Any]


LANGUAGE = Task(check_data, build_datasets, forward_step)
VISION_LANGUAGE = Task(vlm_datasets.check_conversations, vlm_datasets.build_datasets, vlm_batches.forward_step)


def train() -> None:
    """Train as `sys.argv` says."""
    settle_device()
    args = parse_arguments()
    task = LANGUAGE if args.vision_model_type is None else VISION_LANGUAGE
    args.listed_samples = on_rank_0(lambda: task.check_data(args))
    with contextlib.ExitStack() as trainer:
        trainer.callback(forget_loss_tokens)
        for part in (use_prebuilt_helpers(), any_expert_layout(), probed_steps(args), predicting_like_the_last_layer()):
            trainer.enter_context(part)
        config, competition = model_and_competition(args)
        trainer.enter_context(counted_flops(config, competition))
        if competition is not None:
            trainer.enter_context(keep_schedule(competition, args))
        for part in (reliable(config, args), written_progress(), one_curve()):
            trainer.enter_context(part)
        pretrain(
            pretrain_cfg_container_from_args(args, config),
            task.build_datasets,
            ModelType.encoder_or_decoder,
            task.forward_step,
            get_embedding_ranks=embedding_ranks,
        )


@contextlib.contextmanager
def counted_flops(config: Any, competition: ModelCompetition | None) -> Iterator[None]:
    """Within it, Megatron's trainer counts what it does not know: vision towers, and scoring passes."""
    with contextlib.ExitStack() as counted:
        scoring = None
        if isinstance(config, VisionLanguageModelConfig):
            counted.enter_context(counted_vision(config.vision_language))
            scoring = vision_scoring(config.vision_language, competition.config) if competition is not None else None
        if competition is not None:
            counted.enter_context(counted_scoring(competition, scoring))
        yield


def main(launcher: str | None = None) -> None:
    """Entry of one rank; `resilience/stopping/leave.py` says how it leaves.

    Args:
        launcher: what must have started it, `srun` or `mpirun`; default whatever did.
    """
    leave_on_stop_signal()
    try:
        launch = enter_launch(launcher)
    except CompeteError as error:
        refuse_once(error, rank_from_launcher())
    os.environ.update(environment_defaults())
    run_rank(train, launch.rank, launch.local_rank)


if __name__ == "__main__":
    main()
