"""One microbatch: from the data iterator to the loss."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.models.gpt import GPTModel
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import (
    get_attr_wrapped_model,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
    get_model_config,
)
from megatron.training import get_args, get_timers
from torch import Tensor

from megatron_compete.training.watchdog import mark_progress

Batch = dict[str, Any]
"""Tensors by name; None for what this rank's stage does not need."""
SPIKE = 10.0
"""A microbatch's loss is spiky where it is so many times the largest of the first ones (Megatron's pretrain_gpt)."""
KEYS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def get_batch(data_iterator: Iterator[Batch] | None, config: TransformerConfig, vp_stage: int | None) -> Batch:
    """The tensors that this rank's stage needs, [micro batch, sequence / context parallel size] each.

    Tensor parallel rank 0 reads and broadcasts to the others; stages in the middle of the pipeline need nothing.
    """
    args = get_args()
    stage: Any = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    first, last = mpu.is_pipeline_first_stage(**stage), mpu.is_pipeline_last_stage(**stage)
    has_mtp = mtp_on_this_rank(config.pipeline_model_parallel_layout, config.mtp_num_layers, **stage)
    if not (first or last or has_mtp):
        return dict.fromkeys(KEYS)
    tp_rank = mpu.get_tensor_model_parallel_rank()
    batch = _read(data_iterator) if tp_rank == 0 else {}
    batch = get_batch_on_this_tp_rank(
        batch,
        has_cu_seqlens=False,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=tp_rank,
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=has_mtp,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=first,
        is_pipeline_last_stage=last,
    )
    if args.context_parallel_size > 1:
        batch = get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group())
    return {key: batch.get(key) for key in KEYS}


def _read(data_iterator: Iterator[Batch] | None) -> Batch:
    assert data_iterator is not None, "tensor parallel rank 0 of a first or last stage has a data iterator"
    data = next(data_iterator)
    return {key: data[key].cuda(non_blocking=True) if key in data else None for key in KEYS}


def loss_func(loss_mask: Tensor, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the token losses, number of tokens, and both for the log: Megatron's three-part form.

    Args:
        loss_mask: [B, S], 1 for the tokens that count.
        output: token losses [B, S].
    """
    args = get_args()
    mask = loss_mask.view(-1).float()
    loss = torch.sum(output.float().view(-1) * mask)
    if args.check_for_nan_in_loss_and_grad:
        for reject, name in ((torch.isnan, "nan"), (torch.isinf, "inf")):
            get_rerun_state_machine().validate_result(
                result=loss,
                rejection_func=reject,
                message=f"found {name} in the local forward loss",
                tolerance=0.0,
                fatal=True,
            )
    num_tokens = mask.sum().detach().to(torch.int)
    if args.check_for_spiky_loss:
        machine = get_rerun_state_machine()
        machine.validate_result(
            result=loss / num_tokens.clamp_min(1),
            rejection_func=partial(machine.is_unexpectedly_large, threshold=SPIKE, context="loss"),
            message="spiky loss",
            tolerance=0.0,
            fatal=False,
        )
    return loss, num_tokens, {"lm loss": torch.stack([loss.detach(), num_tokens.to(loss.dtype)])}


def forward_step(data_iterator: Any, model: GPTModel) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Megatron's forward step: the model's output for one microbatch, and the loss function of that microbatch."""
    mark_progress()
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    batch = get_batch(data_iterator, get_model_config(model), get_attr_wrapped_model(model, "vp_stage"))
    timers("batch-generator").stop()
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
    )
    return output, partial(loss_func, batch["loss_mask"])
