from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.conversations.reader import Reader
from tests.data.conversations.tiny import picture, reader, sample, save_pictures, turns


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_pictures(tmp_path / "images", 3)
    return tmp_path / "images"


def read(own: Reader, record: dict[str, Any], **more: Any) -> Any:
    return own.sample(own.conversation(record), own.check(record).tiles, with_images=True, **more)


def test_what_checks_find_is_what_training_reads(images: Path) -> None:
    for config in ({}, {"use_tiling": True, "max_num_tiles": 6, "use_thumbnail": True}, {"check_images": "decode"}):
        own = reader(images, seq_length=400, **config)
        picture(50, 20).save(images / "wide.png")
        record = sample("a", ["wide.png", "1.png"], "<image> and <image>?", "both")
        checked, found = own.check(record), read(own, record)
        assert found["num_image_tiles"].tolist() == list(checked.tiles) and len(found["images"]) == sum(checked.tiles)
        assert checked.length == len(found["tokens"]) - 2 + 4 * sum(checked.tiles)
        assert torch.equal(found["images"][: checked.tiles[0]], own.pixels(own.folder.load("wide.png")))


def test_without_pixels_all_else_is_the_same(images: Path) -> None:
    own, record = reader(images), sample("a", "1.png")
    with_images = read(own, record)
    without = own.sample(own.conversation(record), [1], with_images=False)
    assert without["images"].shape == (0, 3, 16, 16) and len(with_images["images"]) == 1
    for name in ("tokens", "labels", "loss_mask", "position_ids", "num_image_tiles"):
        assert torch.equal(without[name], with_images[name])


def test_the_length_counts_embeddings_and_no_last_token(images: Path) -> None:
    """Right at the limit and one below it."""
    record = sample("a", "1.png")
    length = reader(images).check(record).length
    assert reader(images, seq_length=length).check(record).length == length
    with pytest.raises(
        BadSample, match=f"{length} positions, 4 of them of images, more than --seq-length {length - 1}"
    ) as bad:
        reader(images, seq_length=length - 1).check(record)
    assert bad.value.kind == "too_long"


def test_a_cut_conversation_is_the_beginning_of_the_whole_one(images: Path) -> None:
    record = {"conversations": turns("<image>\nWhat?", "first " * 3, "And?", "second " * 9), "image": "1.png"}
    whole = read(reader(images, seq_length=400), record)
    cut_reader = reader(images, seq_length=90, truncate=True)
    checked, cut = cut_reader.check(record), read(cut_reader, record)
    assert (checked.length, checked.is_cut) == (90, True) and len(cut["tokens"]) == 90 - 4 + 1
    for name in ("tokens", "labels", "loss_mask", "position_ids"):
        assert torch.equal(cut[name], whole[name][: len(cut[name])])
    assert not reader(images, seq_length=400, truncate=True).check(record).is_cut


@pytest.mark.parametrize(
    ("texts", "kind", "reason"),
    [
        (("<image>\nWhat?" + "long " * 20, "answer"), "nothing_to_learn", "the cut leaves no answer"),
        (("long " * 20 + "<image> <image>", "answer"), "too_long", "an image would be cut"),
    ],
)
def test_what_no_cut_helps(texts: tuple[str, str], kind: str, reason: str, images: Path) -> None:
    record = sample("a", [f"{number}.png" for number in range(texts[0].count("<image>"))], *texts)
    with pytest.raises(BadSample, match=reason) as bad:
        reader(images, seq_length=60, truncate=True).check(record)
    assert bad.value.kind == kind


def test_an_image_of_another_size_than_before(images: Path) -> None:
    own = reader(images, use_tiling=True, max_num_tiles=4)
    picture(20, 20).save(images / "1.png")
    tiles = own.check(sample("a", "1.png")).tiles
    picture(90, 20).save(images / "1.png")
    with pytest.raises(BadSample, match=r"image 1.png had 1 tiles when the samples were checked, now 4"):
        own.sample(own.conversation(sample("a", "1.png")), tiles, with_images=True)


def test_headers_are_enough_unless_all_is_to_be_decoded(images: Path) -> None:
    picture(64, 64).save(images / "1.png")
    content = (images / "1.png").read_bytes()
    (images / "1.png").write_bytes(content[: len(content) // 2])
    assert reader(images).check(sample("a", "1.png")).tiles == (1,)
    with pytest.raises(BadSample, match=r"1.png cannot be read") as bad:
        reader(images, check_images="decode").check(sample("a", "1.png"))
    assert bad.value.kind == "damaged_image"
