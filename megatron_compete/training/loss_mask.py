"""Microbatches of which the loss counts some tokens alone: what that means to all pipeline stages.

Under `--calculate-per-token-loss` losses of routers weigh by what the loss counts (`moe/loss_tokens.py`). Where the data mask
nothing, that is every token, as Megatron takes it, and nobody needs to be told.
"""

import argparse

import torch
from megatron.core import mpu
from torch import Tensor

from megatron_compete.moe.loss_tokens import set_loss_tokens

MASKING = ("sft", "eod_mask_loss", "fim_data", "allow_ambiguous_pad_tokens")
"""Arguments of Megatron's under which its datasets mask tokens of training samples: prompts, ends of documents, padding."""


def weighs_by_mask(args: argparse.Namespace) -> bool:
    """Whether every pipeline stage must know what the loss counts of each microbatch, and so must read the samples."""
    return bool(args.calculate_per_token_loss and any(getattr(args, name) for name in MASKING))


def tell_loss_tokens(loss_mask: Tensor | None) -> None:
    """Have this rank's routers weigh by what the loss counts of the microbatch that was read; a collective of the tensor
    parallel ranks.

    Args:
        loss_mask: [B, S] of the whole microbatch; None but on tensor parallel rank 0.
    """
    count = torch.zeros((), dtype=torch.float32, device=torch.cuda.current_device())
    if loss_mask is not None:
        count.copy_(loss_mask.sum())
    if mpu.get_tensor_model_parallel_world_size() > 1:
        source, group = mpu.get_tensor_model_parallel_src_rank(), mpu.get_tensor_model_parallel_group()
        torch.distributed.broadcast(count, source, group=group)
    set_loss_tokens(count)
