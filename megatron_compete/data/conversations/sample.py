"""A sample as the model reads it, and several of them as a microbatch.

Shapes: S tokens, B samples of a microbatch, N images of a sample, P conversations of a packed sample. In `tokens` an image
is one token; the model puts its embeddings there, so positions and `cu_seqlens` count those.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.chat import Encoded

IGNORED = -100
"""Label of what is not learned, as in `LLaVAModel`."""


class Sample(dict[str, Tensor]):
    """Tensors by name.

    tokens, labels, position_ids [S] int64; loss_mask [S] fp32, 1 where the label counts; images [tiles, 3, h, w] fp32;
    num_image_tiles [N] int32. Of a packed sample also cu_seqlens [P + 1] and max_seqlen [1], int32: where conversations
    begin, the last of them what fills the sequence up.
    """

    pad_id: int = 0
    """Token that fills a microbatch up."""


def make_sample(encoded: Encoded, image_id: int, lengths: Sequence[int], images: Tensor, pad_id: int) -> Sample:
    """A sample of one conversation.

    Args:
        encoded: S + 1 tokens: each but the last one predicts the next.
        lengths: embeddings of each image.
        images: pixels of all of them, [tiles, 3, h, w].
    """
    tokens, targets, learned = encoded.ids[:-1], encoded.ids[1:], encoded.learned[1:]
    sample = Sample(
        tokens=torch.from_numpy(tokens.copy()),
        labels=torch.from_numpy(np.where(learned, targets, IGNORED)),
        loss_mask=torch.from_numpy(learned.astype(np.float32)),
        position_ids=torch.from_numpy(positions_of(tokens == image_id, lengths)),
        images=images,
    )
    sample.pad_id = pad_id
    return sample


def positions_of(is_image_S: NDArray[np.bool_], lengths: Sequence[int]) -> NDArray[np.int64]:
    """Position of each token once images are their embeddings; an image's is that of its first one."""
    widths = np.ones(len(is_image_S), dtype=np.int64)
    widths[is_image_S] = lengths
    return np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)


def join(samples: Sequence[Sample], lengths: Sequence[int], seq_length: int, image_id: int) -> Sample:
    """Several conversations as one sequence of exactly `seq_length` positions.

    Args:
        lengths: positions of each, image embeddings included.
    """
    filler = seq_length - sum(lengths)
    parts = [*samples, _filler(samples[0], filler)] if filler else list(samples)
    joined = Sample({name: torch.cat([part[name] for part in parts]) for name in samples[0]})
    before_image = torch.nn.functional.pad(joined["tokens"][1:] == image_id, (0, 1))
    joined["labels"][before_image] = IGNORED  # `LLaVAModel` has no loss there, though it may end a conversation
    joined["loss_mask"][before_image] = 0
    bounds = np.cumsum([0, *lengths, *([filler] if filler else [])])
    joined["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32)
    joined["max_seqlen"] = torch.tensor([int(np.diff(bounds).max())], dtype=torch.int32)
    joined.pad_id = samples[0].pad_id
    return joined


def _filler(like: Sample, length: int) -> Sample:
    """What fills a pack up: nothing of it is learned, and nothing attends to it."""
    return Sample(
        tokens=torch.full((length,), like.pad_id),
        labels=torch.full((length,), IGNORED),
        loss_mask=torch.zeros(length),
        position_ids=torch.arange(length),
        images=like["images"][:0],
        num_image_tiles=like["num_image_tiles"][:0],
    )


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """A microbatch: tokens, labels, loss_mask and position_ids [B, S of the longest], filled up on the right; all tiles
    and num_image_tiles one after the other; of a packed sample cu_seqlens [1, P + 1] and max_seqlen [1].

    Raises:
        CompeteError: several packed samples, which would be one sequence longer than the model's.
    """
    fillers = {"tokens": samples[0].pad_id, "labels": IGNORED, "loss_mask": 0, "position_ids": 0}
    batch = {name: _padded([sample[name] for sample in samples], value) for name, value in fillers.items()}
    batch |= {name: torch.cat([sample[name] for sample in samples]) for name in ("images", "num_image_tiles")}
    if "cu_seqlens" in samples[0]:
        if len(samples) > 1:
            raise CompeteError(
                f"--pack-conversations fills --seq-length by itself: give --micro-batch-size 1 and not {len(samples)}"
            )
        batch |= {"cu_seqlens": samples[0]["cu_seqlens"][None], "max_seqlen": samples[0]["max_seqlen"]}
    return batch


def _padded(rows: Sequence[Tensor], value: float) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def _collate(samples: Sequence[Sample], *, collate_fn_map: Any = None) -> dict[str, Tensor]:
    return collate(samples)


# Megatron's data loader has torch's default collation, which asks this map (documented at `torch.utils.data.default_collate`).
default_collate_fn_map[Sample] = _collate
