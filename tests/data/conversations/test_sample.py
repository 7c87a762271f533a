"""Samples and microbatches against a sequence whose images are written out, as a Hugging Face processor has it."""

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.models.multimodal.llava_model import LLaVAModel
from torch import Tensor
from torch.utils.data import default_collate

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.chat import Encoded
from megatron_compete.data.conversations.sample import IGNORED, Sample, collate, join, make_sample

IMAGE_ID, PAD_ID, WIDTH, SEQ_LENGTH = 7, 99, 3, 64


def encoded(ids: list[int], learned: list[bool]) -> Encoded:
    """As `Chat.encode` gives it: an image, and what follows one, is not learned."""
    after = [False] + [one == IMAGE_ID for one in ids[:-1]]
    kept = [flag and one != IMAGE_ID and not behind for flag, one, behind in zip(learned, ids, after)]
    return Encoded(np.array(ids, dtype=np.int64), np.array(kept))


def made(code: Encoded, tiles: list[int]) -> Sample:
    sample = make_sample(code, IMAGE_ID, [WIDTH * count for count in tiles], torch.zeros(sum(tiles), 3, 2, 2), PAD_ID)
    sample["num_image_tiles"] = torch.tensor(tiles, dtype=torch.int32)
    return sample


def written_out(code: Encoded, tiles: list[int]) -> tuple[list[int], list[int]]:
    """Ids with each image token repeated, and their labels before the shift."""
    counts, ids, labels = iter(tiles), [], []
    for id_, learned in zip(code.ids.tolist(), code.learned.tolist()):
        times = WIDTH * next(counts) if id_ == IMAGE_ID else 1
        ids += [id_] * times
        labels += [id_ if learned else IGNORED] * times
    return ids[:-1], labels[1:]


def expanded(batch: dict[str, Tensor], **stage: bool) -> tuple[Any, Tensor, Tensor]:
    """What `LLaVAModel` makes of a microbatch."""
    stages = {"pre_process": True, "post_process": True} | stage
    model: Any = SimpleNamespace(
        add_decoder=True, img_seq_len=WIDTH, _language_is_pipeline_parallel=False, context_parallel_lm=1,
        _language_max_sequence_length=SEQ_LENGTH, vision_model=None, **stages,
    )  # fmt: skip
    tiles = len(batch["images"])
    images = torch.arange(tiles * WIDTH).reshape(-1, WIDTH).T[..., None] + 1000.0 if tiles else torch.empty(0, 0, 0)
    return LLaVAModel._preprocess_data(  # type: ignore[no-any-return]
        model, images, batch["tokens"][..., None].float(), batch["tokens"], batch["loss_mask"], batch["labels"], False,
        None, IMAGE_ID, batch["num_image_tiles"],
    )  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Encoded, list[int]]:
    """Up to 9 tokens, some of them images of one or two tiles; the last one is text."""
    ids = draw(st.lists(st.sampled_from([IMAGE_ID, 10, 11, 12]), min_size=1, max_size=8))
    ids += [13]
    learned = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return encoded(ids, learned), [draw(st.integers(1, 2)) for id_ in ids if id_ == IMAGE_ID]


@settings(max_examples=100, deadline=None)
@given(drawn=st.lists(conversations(), min_size=1, max_size=3))
def test_the_model_s_labels_are_those_of_the_sequence_with_images_written_out(
    drawn: list[tuple[Encoded, list[int]]],
) -> None:
    batch = collate([made(*one) for one in drawn])
    embedded, labels, mask = expanded(batch)
    images = iter(range(1000, 9000))
    for row, (code, tiles) in enumerate(drawn):
        ids, wanted = written_out(code, tiles)
        kept = labels[row, : len(ids)].where(mask[row, : len(ids)] > 0, IGNORED)
        assert kept.tolist() == wanted
        assert not mask[row, len(ids) :].any() and set(mask.unique().tolist()) <= {0.0, 1.0}
        rows = [float(next(images)) if id_ == IMAGE_ID else float(id_) for id_ in ids]
        assert embedded[: len(ids), row, 0].tolist() == rows
        places = [place for place, id_ in enumerate(ids) if id_ != IMAGE_ID]
        text = code.ids[:-1] != IMAGE_ID
        assert batch["position_ids"][row, : len(text)][torch.from_numpy(text)].tolist() == places
    assert float(mask.sum()) == float(batch["loss_mask"].sum())  # what a loss is divided by is known before the model


@settings(max_examples=60, deadline=None)
@given(drawn=st.lists(conversations(), min_size=1, max_size=3))
def test_a_pack_is_its_conversations_side_by_side(drawn: list[tuple[Encoded, list[int]]]) -> None:
    lengths = [len(written_out(*one)[0]) for one in drawn]
    packed = join([made(*one) for one in drawn], lengths, SEQ_LENGTH, IMAGE_ID)
    batch = collate([packed])
    embedded, labels, mask = expanded(batch)
    bounds = batch["cu_seqlens"][0].tolist()
    assert (
        batch["cu_seqlens"].shape == (1, len(bounds)) and bounds[0] == 0 and bounds[-1] == SEQ_LENGTH == len(embedded)
    )
    assert batch["max_seqlen"].tolist() == [max(b - a for a, b in pairwise(bounds))]
    for number, (code, tiles) in enumerate(drawn):
        begin, end = bounds[number : number + 2]
        ids, wanted = written_out(code, tiles)
        assert end - begin == len(ids)
        if number + 1 < len(drawn) and drawn[number + 1][0].ids[0] == IMAGE_ID:
            wanted[-1] = IGNORED  # the model has no loss in front of an image
        assert labels[0, begin:end].where(mask[0, begin:end] > 0, IGNORED).tolist() == wanted
    assert not mask[0, bounds[len(drawn)] :].any() and float(mask.sum()) == float(batch["loss_mask"].sum())


def test_a_full_pack_has_no_filler() -> None:
    one = made(encoded([10] * 5, [True] * 5), [])
    packed = join([one, one], [4, 4], 8, IMAGE_ID)
    assert packed["cu_seqlens"].tolist() == [0, 4, 8] and packed["position_ids"].tolist() == [0, 1, 2, 3] * 2
    assert join([one], [4], 6, IMAGE_ID)["tokens"].tolist() == [10] * 4 + [PAD_ID] * 2
    with pytest.raises(
        CompeteError, match="--pack-conversations fills --seq-length by itself: give --micro-batch-size 1"
    ):
        collate([packed, packed])


def test_microbatches_by_torch_s_own_collation() -> None:
    """Megatron's data loader names no other."""
    samples = [made(encoded([10, 7, 11, 12], [True] * 4), [2]), made(encoded([10, 11], [True] * 2), [])]
    batch = default_collate(samples)
    assert batch["tokens"].tolist() == [[10, 7, 11], [10, PAD_ID, PAD_ID]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 12], [11, IGNORED, IGNORED]]
    assert batch["loss_mask"].tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert batch["position_ids"].tolist() == [[0, 1, 7], [0, 0, 0]]
    assert batch["images"].shape == (2, 3, 2, 2) and batch["num_image_tiles"].tolist() == [2]
    kinds = [
        batch[name].dtype for name in ("tokens", "labels", "position_ids", "loss_mask", "images", "num_image_tiles")
    ]
    assert kinds == [torch.int64] * 3 + [torch.float32] * 2 + [torch.int32]
    alone = default_collate(samples[1:])
    assert alone["images"].shape == (0, 3, 2, 2) and alone["num_image_tiles"].shape == (0,)
