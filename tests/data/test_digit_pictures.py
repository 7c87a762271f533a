"""Pictures of digits: what a question's answer says is what the picture shows, and no digit is in both splits."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.digit_pictures import (
    COLOURS,
    DIGITS,
    GREY,
    PLACES,
    TRAIN_DIGITS,
    DigitPictures,
    write_digit_pictures,
)

INK_NP = load_digits().images.reshape(-1, 64) / 16
LABELS_N = load_digits().target


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> DigitPictures:
    return write_digit_pictures(tmp_path_factory.mktemp("digits"), train=400, heldout=300, seed=3)


def records(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


def seen(pixels_YXC: NDArray[np.float64]) -> tuple[str, int]:
    """The colour of one quarter of a picture, and the number of the handwritten digit in it: the nearest of all."""
    found = []
    for colour, rgb in COLOURS.items():
        direction_C = np.array(rgb) - GREY
        ink_P = ((pixels_YXC - GREY) @ direction_C / (direction_C @ direction_C)).reshape(64)
        error = np.square((pixels_YXC - GREY).reshape(64, 3) - ink_P[:, None] * direction_C).sum()
        found.append((error, colour, ink_P))
    _, colour, ink_P = min(found, key=lambda each: each[0])
    distance_N = np.square(INK_NP - ink_P).sum(1)
    assert distance_N.min() < 0.01
    return colour, int(distance_N.argmin())


def answer(question: str, colours: list[str], digits: list[str]) -> str:
    words = question.removeprefix("<image>\n").split()
    match words:
        case ["describe", "."]:
            return " ".join(f"{colour} {digit}" for colour, digit in zip(colours, digits))
        case ["which", "digit", "is", place, "?"]:
            return digits[PLACES.index(place)]
        case ["what", "colour", "is", place, "?"]:
            return colours[PLACES.index(place)]
        case ["where", "is", "the", digit, "?"]:
            assert digits.count(digit) == 1
            return PLACES[digits.index(digit)]
    raise AssertionError(question)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_are_what_the_picture_shows(pictures: DigitPictures, split: str) -> None:
    path = pictures.train_path if split == "train" else pictures.heldout_path
    shown = [record for record in records(path) if "image" in record]
    for record in shown[:100]:
        pixels = np.asarray(Image.open(pictures.image_folder / record["image"]), float)
        assert pixels.shape == (16, 16, 3)
        found = [seen(pixels[y : y + 8, x : x + 8]) for y in (0, 8) for x in (0, 8)]
        assert all((number < TRAIN_DIGITS) == (split == "train") for _, number in found)
        question, given = (turn["value"] for turn in record["conversations"])
        assert question.startswith("<image>\n") and question.count("<image>") == 1
        assert given == answer(question, [colour for colour, _ in found], [DIGITS[LABELS_N[n]] for _, n in found])


def test_some_records_have_no_picture(pictures: DigitPictures) -> None:
    texts = [record for record in records(pictures.train_path) if "image" not in record]
    assert {record["kind"] for record in texts} == {"text"} and 20 < len(texts) < 60
    for record in texts:
        question, given = (turn["value"] for turn in record["conversations"])
        before = question.removeprefix("which number comes after ").removesuffix(" ?")
        assert DIGITS.index(given) == DIGITS.index(before) + 1


def test_counts_are_those_of_the_files(pictures: DigitPictures) -> None:
    for path, kinds in (pictures.train_path, pictures.train_kinds), (pictures.heldout_path, pictures.heldout_kinds):
        found = [record["kind"] for record in records(path)]
        assert {kind: found.count(kind) for kind in found} == kinds
        assert set(kinds) == {"digit", "colour", "where", "caption", "text"}
    assert (sum(pictures.train_kinds.values()), sum(pictures.heldout_kinds.values())) == (400, 300)
    assert pictures.train_kinds["caption"] > 3 * pictures.heldout_kinds["caption"]


def test_the_seed_decides(pictures: DigitPictures, tmp_path: Path) -> None:
    again = write_digit_pictures(tmp_path / "again", train=400, heldout=300, seed=3)
    assert again.train_path.read_bytes() == pictures.train_path.read_bytes()
    assert again.heldout_path.read_bytes() == pictures.heldout_path.read_bytes()
    for record in records(again.heldout_path):
        if name := record.get("image"):
            assert (again.image_folder / name).read_bytes() == (pictures.image_folder / name).read_bytes()
    other = write_digit_pictures(tmp_path / "other", train=400, heldout=300, seed=4)
    assert other.train_path.read_bytes() != pictures.train_path.read_bytes()


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(CompeteError, match=r"sklearn.*megatron-compete\[digits\]"):
        write_digit_pictures(tmp_path, train=1, heldout=1)
    assert not list(tmp_path.iterdir())
