"""--dataloader-type external: conversations out of a megatron-energon dataset, and each rank's place in it."""

import argparse
import os
from typing import Any

import torch
from megatron.core import mpu
from megatron.training.checkpointing import get_checkpoint_name

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.reader import Reader


def build_external(args: argparse.Namespace, reader: Reader) -> list[Any]:
    """Loaders of training, validation and test, as Megatron takes them from outside; resumed where --load resumes.

    Raises:
        CompeteError: megatron-energon is not installed, or the place of this rank was not kept.
    """
    from megatron_compete.data.conversations.energon import EnergonBatches

    settings: dict[str, Any] = {
        "rank": mpu.get_data_parallel_rank(),
        "ranks": mpu.get_data_parallel_world_size(),
        "group": mpu.get_data_parallel_group(),
        "workers": args.num_workers,
        "seed": args.seed,
    }
    training = EnergonBatches(reader, micro_batch_size=args.micro_batch_size, **settings)
    if args.iteration and not args.finetune:
        training.restore_state(_place(args))
    evaluates = bool(args.eval_iters)
    validation = (
        EnergonBatches(reader, micro_batch_size=args.eval_micro_batch_size, part="val", **settings)
        if evaluates
        else None
    )
    return [training, validation, None]


def _place(args: argparse.Namespace) -> Any:
    """Where this rank was, as `maybe_save_dataloader_state` (megatron/training/checkpointing.py) kept it."""
    folder, rank = args.dataloader_save, mpu.get_data_parallel_rank()
    if folder is None:
        raise CompeteError(
            f"resuming at step {args.iteration} with --energon-path needs to know where its loader was: give --dataloader-save "
            "as the job before did, or --finetune to begin anew"
        )
    pipelined = mpu.get_pipeline_model_parallel_world_size() > 1
    path = get_checkpoint_name(
        folder, args.iteration, pipeline_parallel=pipelined, tensor_rank=0, pipeline_rank=0, expert_parallel=False,
        expert_rank=0, basename=f"train_dataloader_dprank{rank:03d}.pt",
    )  # fmt: skip
    if not os.path.isfile(path):
        raise CompeteError(
            f"--dataloader-save {folder} has no {os.path.basename(path)} of step {args.iteration}: energon resumes with as many "
            "data-parallel ranks as before; --finetune begins anew"
        )
    return torch.load(path, weights_only=False)["dataloader_state_dict"]
