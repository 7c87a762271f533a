"""One microbatch: from the data iterator to the loss, as in Megatron-LM's own pretrain_gpt.py."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.parallel_state import get_hybrid_data_context_parallel_groups
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.core.utils import (
    StragglerDetector,
    flatten_batch_for_packed_sequences,
    get_attr_wrapped_model,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
    get_model_config,
)
from megatron.training import get_args, get_timers
from megatron.training.training import update_seqlen_stats_from_cu_seqlens
from torch import Tensor

from megatron_compete.resilience.stuck_ranks.watchdog import count_microbatch
from megatron_compete.training.loss_mask import tell_loss_tokens, weighs_by_mask

Batch = dict[str, Any]
"""Tensors by name; None for what this rank's stage does not need."""
SPIKE = 10.0
"""A microbatch's loss is spiky where it is so many times the largest of the first ones (Megatron's pretrain_gpt)."""
PACKED_KEYS = ("cu_seqlens", "cu_seqlens_padded", "max_seqlen")
"""Of samples that hold several sequences, on every stage."""
KEYS = (
    "tokens", "labels", "loss_mask", "attention_mask", "position_ids", *PACKED_KEYS, "local_cp_size", "hybrid_cp_group",
)  # fmt: skip

straggler_detector = StragglerDetector()
"""Upstream's singleton, for --log-straggler."""


def get_batch(data_iterator: Iterator[Batch] | None, model: Any) -> Batch:
    """The tensors that this rank's stage needs, [micro batch, sequence / context parallel size] each.

    Tensor parallel rank 0 reads and broadcasts to the others; stages in the middle of the pipeline need nothing, or what
    says where packed sequences begin. Those are one row, [1, micro batch * sequence / context parallel size]. Where routers
    weigh by what the loss counts, they are told.
    """
    args, config = get_args(), get_model_config(model)
    vp_stage = get_attr_wrapped_model(model, "vp_stage")
    stage: Any = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    first, last = mpu.is_pipeline_first_stage(**stage), mpu.is_pipeline_last_stage(**stage)
    has_mtp = mtp_on_this_rank(config.pipeline_model_parallel_layout, config.mtp_num_layers, **stage)
    packed = bool(args.sft or args.dataloader_inter_document_masking)
    weighs = weighs_by_mask(args)
    if not (first or last or has_mtp or packed or weighs):
        return dict.fromkeys(KEYS)
    tp_rank = mpu.get_tensor_model_parallel_rank()
    batch = _read(data_iterator) if tp_rank == 0 else {}
    if weighs:
        tell_loss_tokens(batch.get("loss_mask"))
    if not (first or last or has_mtp or packed):
        return dict.fromkeys(KEYS)
    batch = get_batch_on_this_tp_rank(
        batch,
        has_cu_seqlens=packed,
        is_hybrid_cp=args.hybrid_context_parallel,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=tp_rank,
        micro_batch_size=args.micro_batch_size if model.training else args.eval_micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=has_mtp,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=first,
        is_pipeline_last_stage=last,
    )
    batch = flatten_batch_for_packed_sequences(batch)
    if not (first or last or has_mtp):
        return dict.fromkeys(KEYS) | {key: batch[key] for key in PACKED_KEYS}
    if args.context_parallel_size > 1 or args.hybrid_context_parallel:
        batch = get_batch_on_this_cp_rank(
            batch,
            is_hybrid_cp=args.hybrid_context_parallel,
            cp_group=mpu.get_context_parallel_group(),
            hybrid_cp_group_func=get_hybrid_data_context_parallel_groups,
            use_per_sequence_balancing=args.dataloader_inter_document_masking and not args.sft,
        )
    return {key: batch.get(key) for key in KEYS}


def _read(data_iterator: Iterator[Batch] | None) -> Batch:
    assert data_iterator is not None, "tensor parallel rank 0 of a stage that needs tokens has a data iterator"
    data = next(data_iterator)
    return {key: data[key].cuda(non_blocking=True) if data.get(key) is not None else None for key in KEYS}


def packed_sequences(batch: Batch, tokens_per_sample: int) -> PackedSeqParams | None:
    """Where the sequences of packed samples begin, for Transformer Engine's attention; None for plain samples.

    Args:
        tokens_per_sample: --seq-length.
    """
    if batch["cu_seqlens"] is None:
        return None
    real = batch["cu_seqlens"].squeeze(0)
    padded = None if batch["cu_seqlens_padded"] is None else batch["cu_seqlens_padded"].squeeze(0)
    update_seqlen_stats_from_cu_seqlens(real)  # attention's share of the TFLOP/s that are logged
    begins = real if padded is None else padded  # Transformer Engine wants the padded ones for both
    longest, cp_size = int(batch["max_seqlen"].item()), batch["local_cp_size"]
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=begins,
        cu_seqlens_kv=begins,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        local_cp_size=None if cp_size is None else int(cp_size.item()),
        cp_group=batch["hybrid_cp_group"],
        tokens_per_sample=tokens_per_sample,
    )


@cache
def _distillation() -> Any:
    """Megatron's loss against a teacher's saved log-probabilities (--logits-load-dir), which it reads ahead."""
    from megatron.training.distillation import LossFuncCallable

    args = get_args()
    return LossFuncCallable(
        logprobs_dir=args.logits_load_dir,
        decode_threads=args.logits_load_decode_threads,
        prefetch_factor=args.logits_load_prefetch_factor,
        msc_prefetch_depth=args.logits_load_msc_prefetch_depth,
        kd_loss_alpha=args.logits_load_kd_loss_alpha,
        ignore_errors=args.logits_load_ignore_errors,
    )


def _language_loss(loss_mask: Tensor, output: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    mask = loss_mask.view(-1).float()
    loss = torch.sum(output.float().view(-1) * mask)
    num_tokens = mask.sum().detach().to(torch.int)
    return loss, num_tokens, {"lm loss": torch.stack([loss.detach(), num_tokens.to(loss.dtype)])}


def loss_func(
    loss_mask: Tensor, output: Tensor, model: GPTModel | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of the token losses, number of tokens, and both for the log: Megatron's three-part form.

    Args:
        loss_mask: [B, S], 1 for the tokens that count.
        output: token losses [B, S].
        model: needed with --logits-load-dir alone.
    """
    args = get_args()
    if args.logits_load_dir is not None:
        loss, num_tokens, report = _distillation()(loss_mask, output, model=model)
    else:
        loss, num_tokens, report = _language_loss(loss_mask, output)
    if args.check_for_nan_in_loss_and_grad:
        for reject, name in ((torch.isnan, "nan"), (torch.isinf, "inf")):
            get_rerun_state_machine().validate_result(
                result=loss,
                rejection_func=reject,
                message=f"found {name} in the local forward loss",
                tolerance=0.0,
                fatal=True,
            )
    if args.check_for_spiky_loss:
        machine = get_rerun_state_machine()
        machine.validate_result(
            result=loss / num_tokens.clamp_min(1),
            rejection_func=partial(machine.is_unexpectedly_large, threshold=SPIKE, context="loss"),
            message="spiky loss",
            tolerance=0.0,
            fatal=False,
        )
    return loss, num_tokens, report


def forward_step(
    data_iterator: Any, model: GPTModel, return_schedule_plan: bool = False
) -> tuple[Any, Callable[[Tensor], Any]]:
    """Megatron's forward step: the model's output for one microbatch, and the loss function of that microbatch.

    Args:
        return_schedule_plan: instead of the output, the plan of the layers' parts that Megatron interleaves
            (--overlap-moe-expert-parallel-comm).
    """
    count_microbatch()
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    with straggler_detector(bdata=True):
        batch = get_batch(data_iterator, model)
        packed = packed_sequences(batch, get_args().seq_length)
    timers("batch-generator").stop()
    inputs = (batch["tokens"], batch["position_ids"], batch["attention_mask"])
    targets = {"labels": batch["labels"], "loss_mask": batch["loss_mask"]}
    with straggler_detector:
        if return_schedule_plan:
            output = model.build_schedule_plan(*inputs, **targets)
        else:
            output = model(*inputs, **targets, packed_seq_params=packed)
    return output, partial(loss_func, batch["loss_mask"], model=model)
