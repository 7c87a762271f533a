from pathlib import Path

import numpy as np
import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.checks import list_samples
from megatron_compete.data.conversations.sample_list import SampleList, summary_lines
from tests.data.conversations.tiny import mixed_dataset, reader, sample, turns, write_json


def test_a_saved_list_is_the_list(tmp_path: Path) -> None:
    file, images = mixed_dataset(tmp_path)
    text = write_json(tmp_path / "text.json", [sample("a"), {"conversations": []}, sample("b")])
    listed = list_samples([text, file], reader(images))
    listed.save(tmp_path / "list.npz")
    loaded = SampleList.load(tmp_path / "list.npz")
    for name, value in vars(loaded).items():
        assert (
            np.array_equal(value, getattr(listed, name))
            if isinstance(value, np.ndarray)
            else value == getattr(listed, name)
        )
    assert len(loaded) == 16 and loaded.total == 17 and loaded.has_images.sum() == 9
    assert [index.read(place)["id"] for index, place in map(loaded.index_of, (0, 1, 2, 15))] == [
        "a",
        "b",
        "with-0",
        "text-4",
    ]
    assert loaded.number[:3].tolist() == [0, 2, 0]
    assert loaded.tiles_of(3) == [1, 1] and loaded.tiles_of(0) == []


def test_its_summary(tmp_path: Path) -> None:
    early = [{"from": "gpt", "value": "early"}, *turns("q", "long " * 30)]
    file = write_json(tmp_path / "data.json", [sample("a"), {"conversations": early}])
    said = summary_lines(list_samples([file], reader(None, truncate=True)))
    assert said[0].startswith("2 samples (0 with images, 2 without), 0 images in 0 tiles, ")
    assert said[1:] == [
        "1 samples lose their end (--truncate-conversations)",
        "1 answers before a first question are left out, as LLaVA does",
    ]


def test_a_damaged_list(tmp_path: Path) -> None:
    file, images = mixed_dataset(tmp_path)
    path = tmp_path / "list.npz"
    list_samples([file], reader(images)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CompeteError, match=r"list.npz is damaged \(.*remove it, and the next start makes it anew"):
        SampleList.load(path)
