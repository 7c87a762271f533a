"""One microbatch of pictures and text: from the data iterator to the loss."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from megatron.core import mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.training import get_args, get_timers
from torch import Tensor

from megatron_compete.moe.loss_tokens import set_loss_tokens
from megatron_compete.resilience.stuck_ranks.watchdog import count_microbatch
from megatron_compete.training.batches import Batch, loss_func, straggler_detector
from megatron_compete.vlm.model import VisionLanguageModel

TEXT = ("tokens", "labels", "loss_mask", "position_ids")
PICTURES = ("images", "num_image_tiles")
PACKED = ("cu_seqlens", "max_seqlen")


def get_batch(data_iterator: Iterator[Batch]) -> Batch:
    """The microbatch of this rank, on its device.

    Every pipeline stage reads it: the first embeds it, the last has its labels, and those between count the tokens of the
    loss. Pictures are decoded for the first stage alone (`training/vlm/datasets.py`).

    Returns:
        tokens, labels, loss_mask and position_ids [B, S], images [tiles, 3, H, W], num_image_tiles [pictures]; where
        conversations are packed cu_seqlens and max_seqlen, of the sequence after expansion.
    """
    data = next(data_iterator)
    names = [name for name in (*TEXT, *PICTURES, *PACKED) if name in data]
    return {name: data[name].cuda(non_blocking=True) for name in names}


def packed_sequences(batch: Batch) -> PackedSeqParams | None:
    """Where packed conversations begin, for Transformer Engine's attention; None where they are padded."""
    if "cu_seqlens" not in batch:
        return None
    begins, longest = batch["cu_seqlens"].squeeze(0), int(batch["max_seqlen"])
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=begins, cu_seqlens_kv=begins, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def forward_step(data_iterator: Any, model: VisionLanguageModel) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Megatron's forward step: the model's output for one microbatch, and the loss function of that microbatch."""
    count_microbatch()
    args, timers = get_args(), get_timers()
    timers("batch-generator", log_level=2).start()
    with straggler_detector(bdata=True):
        batch = get_batch(data_iterator)
    timers("batch-generator").stop()
    if args.calculate_per_token_loss:
        set_loss_tokens(batch["loss_mask"].sum())
    with straggler_detector:
        output, loss_mask = model(
            batch["images"] if mpu.is_pipeline_first_stage() else None,
            batch["tokens"],
            batch["position_ids"],
            None,
            labels=batch["labels"] if mpu.is_pipeline_last_stage() else None,
            loss_mask=batch["loss_mask"],
            num_image_tiles=batch["num_image_tiles"],
            packed_seq_params=packed_sequences(batch),
        )
    return output, partial(loss_func, loss_mask, model=model)
