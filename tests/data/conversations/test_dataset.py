"""The same global batches in every data-parallel layout, after a stop, with and without pixels; one path through loaders."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.datasets.utils import Split
from megatron.training.datasets.data_samplers import MegatronPretrainingSampler
from torch import Tensor
from torch.utils.data import DataLoader

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.bad_samples import SampleError
from megatron_compete.data.conversations.build import build_conversations, build_reader
from megatron_compete.data.conversations.checks import list_samples, prepare_samples
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.dataset import ConversationDataset
from tests.data.conversations.tiny import mixed_dataset, reader, tokenizer

BATCH, SAMPLES = 8, 48
KINDS: dict[str, dict[str, Any]] = {
    "padded": {},
    "grouped": {"group_by_modality": True},
    "packed": {"pack": True},
    "packed, grouped": {"pack": True, "group_by_modality": True},
}


def dataset(
    folder: Path, *, seed: int = 1, num_samples: int = SAMPLES, with_images: bool = True, **config: Any
) -> ConversationDataset:
    file, images = mixed_dataset(folder)
    own = reader(images, seq_length=200 if config.get("pack") else 100, **config)
    return build_conversations(
        own, list_samples([file], own), num_samples=num_samples, seed=seed, batch_size=BATCH, with_images=with_images
    )


def batches(data: ConversationDataset, ranks: int, consumed: int = 0) -> Iterator[list[dict[str, Tensor]]]:
    """Global batches as Megatron's sampler deals them out, one sample a microbatch, in the order of the samples."""
    samplers = [iter(MegatronPretrainingSampler(len(data), consumed, 1, rank, ranks)) for rank in range(ranks)]
    microbatches = [DataLoader(data, batch_sampler=sampler) for sampler in samplers]
    loaders = list(map(iter, microbatches))
    for _ in range((len(data) - consumed) // BATCH):
        yield [next(loader) for _ in range(BATCH // ranks) for loader in loaders]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_global_batches_do_not_depend_on_the_layout_or_on_stops(kind: str, tmp_path: Path) -> None:
    data = dataset(tmp_path, **KINDS[kind])
    whole = list(batches(data, 1))
    assert len(whole) == SAMPLES // BATCH
    for ranks in (2, 4):
        assert all(map(same, whole, batches(data, ranks)))
    for stopped, ranks in ((2, 4), (5, 2)):
        again = list(batches(dataset(tmp_path / "again", **KINDS[kind]), ranks, consumed=stopped * BATCH))
        assert len(again) == len(whole) - stopped and all(map(same, whole[stopped:], again))
    assert not same(whole[0], next(batches(dataset(tmp_path, seed=2, **KINDS[kind]), 1)))


def test_grouped_batches_have_images_or_none(tmp_path: Path) -> None:
    for kind in ("grouped", "packed, grouped"):
        kinds = [{bool(len(one["images"])) for one in batch} for batch in batches(dataset(tmp_path, **KINDS[kind]), 1)]
        assert {True} in kinds and {False} in kinds and {True, False} not in kinds
    plain = [{bool(len(one["images"])) for one in batch} for batch in batches(dataset(tmp_path), 1)]
    assert {True, False} in plain


def test_packs_hold_every_sample_once_an_epoch(tmp_path: Path) -> None:
    data = dataset(tmp_path, pack=True)
    assert data.packs is not None and 1 < len(data.packs) < 14
    seen = [number for index in range(len(data.packs)) for number in data.members(index)]
    assert sorted(seen) == list(range(14))
    for index in range(len(data.packs)):
        sample, length = data[index], int(data.samples.length[data.members(index)].sum())
        bounds = sample["cu_seqlens"].tolist()
        assert bounds[len(data.members(index))] == length and bounds[-1] == 200
        assert len(sample["tokens"]) == 200 - 3 * len(sample["images"])  # an image: one token, 4 positions


def test_later_pipeline_stages_read_no_pixels_and_the_same_text(tmp_path: Path) -> None:
    for config in KINDS.values():
        pairs = zip(dataset(tmp_path, **config), dataset(tmp_path, with_images=False, **config))
        for _, (with_images, without) in zip(range(SAMPLES), pairs):
            assert len(without["images"]) == 0 and with_images.keys() == without.keys()
            assert all(torch.equal(with_images[name], without[name]) for name in without if name != "images")


def test_workers_of_the_loader_and_batches_of_several(tmp_path: Path) -> None:
    data = dataset(tmp_path, num_samples=16)
    one, two = (DataLoader(data, batch_size=4, num_workers=workers) for workers in (0, 2))
    assert all(same([a], [b]) for a, b in zip(one, two, strict=True))


def test_parts_of_a_split(tmp_path: Path) -> None:
    file, images = mixed_dataset(tmp_path)
    own = reader(images)
    path = prepare_samples([file], own)
    parts = [
        build_conversations(own, path, num_samples=9, seed=1, batch_size=2, share=share, split=split)
        for share, split in (((0.0, 0.8), Split.train), ((0.8, 1.0), Split.valid))
    ]
    assert sorted(number for part in parts for number in part.numbers.tolist()) == list(range(14))
    assert parts[1].split == Split.valid and {n for i in range(9) for n in parts[1].members(i)} == set(
        parts[1].numbers.tolist()
    )
    with pytest.raises(CompeteError, match="--split leaves a part without any of the 14 samples"):
        build_conversations(own, path, num_samples=9, seed=1, batch_size=2, share=(0.8, 0.8))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_one_line(workers: int, tmp_path: Path) -> None:
    """Also out of a worker of the loader, which puts its traceback in front."""
    data = dataset(tmp_path, num_samples=14)
    (tmp_path / "images" / "1.png").write_bytes(b"damaged")
    with pytest.raises(SampleError) as error:
        list(DataLoader(data, batch_size=1, num_workers=workers))
    wanted = rf"{tmp_path}/data.json: sample 1 \(id with-1\): image {tmp_path}/images/1.png cannot be read: .*resume, or give "
    assert re.match(wanted, str(error.value)) and "\n" not in str(error.value)


def test_a_file_that_changed_is_said(tmp_path: Path) -> None:
    data = dataset(tmp_path, num_samples=14)
    path = tmp_path / "data.json"
    path.write_text(path.read_text().replace("A with-", "A\u00e9\u00e9h-"))  # as long as before, in more tokens
    with pytest.raises(SampleError, match=r"data.json: sample \d+ .*it has \d+ positions now, and had \d+"):
        list(data)  # type: ignore[call-overload]
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(SampleError, match=r"data.json: sample \d+: line 1, column \d+: .*put it right and resume"):
        data[0]
    with pytest.raises(IndexError):
        data[14]


def test_a_tokenizer_of_megatron_s(tmp_path: Path) -> None:
    from megatron_compete.data.megatron_tokenizer import TokenizerChoice

    tokenizer().save_pretrained(tmp_path / "tokenizer")
    megatron = TokenizerChoice("HuggingFaceTokenizer", str(tmp_path / "tokenizer")).build()
    sizes: dict[str, Any] = {
        "vision_model_type": "siglip",
        "img_h": 16,
        "img_w": 16,
        "seq_length": 96,
        "image_embeddings": 4,
    }
    built = build_reader(ConversationConfig(), megatron, **sizes)
    own = build_reader(ConversationConfig(), tokenizer(), **sizes)
    assert built.chat.image_id == own.chat.image_id and built.chat.text == own.chat.text
