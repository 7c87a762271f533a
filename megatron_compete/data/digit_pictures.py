"""Pictures of handwritten digits with questions and answers: a dataset for vision-language models that needs no download.

The digits are the 1,797 of 8x8 pixels that scikit-learn's wheel brings along (UCI's Optical Recognition of Handwritten Digits,
from 43 people's handwriting). Each picture shows four of them on grey, two by two, each in a colour of its own:

    {"id": "train-000003", "image": "train/000003.png", "kind": "digit", "conversations": [
        {"from": "human", "value": "<image>\\nwhich digit is upper-left ?"}, {"from": "gpt", "value": "seven"}]}

Files are LLaVA's: a JSON array and a folder of pictures. `kind` is for scoring by kind of question; readers of the format pass
over it. A tenth of the records has no picture, as some of LLaVA's have none.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole

Kind = Literal["digit", "colour", "where", "caption", "text"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (230, 200, 40)}
PLACES = ("upper-left", "upper-right", "lower-left", "lower-right")

DIGIT_SIDE = 8
PICTURE_SIDE = 2 * DIGIT_SIDE
GREY = 127.5  # 0 where a processor makes [0, 255] to [-1, 1]
TRAIN_DIGITS = 1437
"""Of scikit-learn's digits, in its order; the 360 behind them are in held-out pictures alone."""

TEXT_SHARE = 0.1
KIND_SHARES: dict[Kind, float] = {"digit": 0.6, "colour": 0.2, "where": 0.2}
"""Of the records with a picture that are not captions."""


@dataclass(frozen=True)
class DigitPictures:
    """What `write_digit_pictures` wrote."""

    train_path: Path
    heldout_path: Path
    image_folder: Path
    """What `image` of a record is relative to."""
    train_kinds: dict[Kind, int]
    """Records of each kind of question."""
    heldout_kinds: dict[Kind, int]


@dataclass(frozen=True)
class _Picture:
    pixels: NDArray[np.uint8]  # [PICTURE_SIDE, PICTURE_SIDE, RGB]
    digits: tuple[str, ...]  # of PLACES
    colours: tuple[str, ...]


def write_digit_pictures(
    folder: Path | str,
    *,
    train: int,
    heldout: int,
    seed: int = 0,
    captions: float = 0.5,
    heldout_captions: float = 0.1,
) -> DigitPictures:
    """Write `train.json`, `heldout.json` and `images/` into `folder`.

    The same arguments always write the same records and pixels. No handwritten digit is in both files.

    Args:
        folder: made if missing; a JSON file appears when all its pictures are there.
        train, heldout: records.
        captions: share of the training records with a picture that name all of it ("red seven blue two ..."), which teach a
            model to see faster than one answer of one word does.
        heldout_captions: the same of the held-out records.
    Raises:
        CompeteError: scikit-learn or Pillow is not installed.
    """
    folder = Path(folder)
    images_NYX, labels_N = _handwritten_digits()
    splits = {
        "train": (train, captions, slice(None, TRAIN_DIGITS)),
        "heldout": (heldout, heldout_captions, slice(TRAIN_DIGITS, None)),
    }
    kinds: list[dict[Kind, int]] = []
    for number, (split, (count, share, part)) in enumerate(splits.items()):
        draw = np.random.default_rng([seed, number])
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        drawn = _draw_records(split, count, share, images_NYX[part], labels_N[part], draw)
        records = _write_images(folder / "images", drawn)
        write_whole(folder / f"{split}.json", json.dumps(records, indent=1))
        kinds.append(dict(Counter(record["kind"] for record in records)))
    return DigitPictures(folder / "train.json", folder / "heldout.json", folder / "images", *kinds)


def _handwritten_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ink of each digit's pixels, 0 to 1, and which digit it is."""
    try:
        import PIL.Image  # noqa: F401  for `_write_images`
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise CompeteError(
            f"pictures of digits need {error.name}, which is not installed: pip install 'megatron-compete[digits]'"
        ) from None
    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target


def _draw_records(
    split: str,
    count: int,
    captions: float,
    images_NYX: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    draw: np.random.Generator,
) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8] | None]]:
    """Records, each with its picture."""
    for number in range(count):
        record: dict[str, Any] = {"id": f"{split}-{number:06d}"}
        if draw.random() < TEXT_SHARE:
            picture, kind, (question, answer) = None, "text", _number_question(draw)
        else:
            picture = _draw_picture(images_NYX, labels_N, draw)
            kind, question, answer = _picture_question(picture, captions, draw)
            record["image"] = f"{split}/{number:06d}.png"
            question = f"<image>\n{question}"
        record["kind"] = kind
        record["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        yield record, None if picture is None else picture.pixels


def _draw_picture(images_NYX: NDArray[np.float32], labels_N: NDArray[np.int64], draw: np.random.Generator) -> _Picture:
    chosen = draw.integers(len(labels_N), size=4)
    colours = tuple(str(colour) for colour in draw.permutation(list(COLOURS)))
    pixels = np.full((PICTURE_SIDE, PICTURE_SIDE, 3), GREY, np.float32)
    for place, (digit, colour) in enumerate(zip(chosen, colours)):
        top, left = DIGIT_SIDE * (place // 2), DIGIT_SIDE * (place % 2)
        ink = images_NYX[digit][..., None]
        pixels[top : top + DIGIT_SIDE, left : left + DIGIT_SIDE] = (
            GREY * (1 - ink) + np.array(COLOURS[colour], np.float32) * ink
        )
    return _Picture(pixels.round().astype(np.uint8), tuple(DIGITS[label] for label in labels_N[chosen]), colours)


def _picture_question(picture: _Picture, captions: float, draw: np.random.Generator) -> tuple[Kind, str, str]:
    if draw.random() < captions:
        named = zip(picture.colours, picture.digits)
        return "caption", "describe .", " ".join(f"{colour} {digit}" for colour, digit in named)
    kind = str(draw.choice(list(KIND_SHARES), p=list(KIND_SHARES.values())))
    place = int(draw.integers(4))
    digit = picture.digits[place]
    if kind == "colour":
        return "colour", f"what colour is {PLACES[place]} ?", picture.colours[place]
    if kind == "where" and picture.digits.count(digit) == 1:
        return "where", f"where is the {digit} ?", PLACES[place]
    return "digit", f"which digit is {PLACES[place]} ?", digit


def _number_question(draw: np.random.Generator) -> tuple[str, str]:
    before = int(draw.integers(len(DIGITS) - 1))
    return f"which number comes after {DIGITS[before]} ?", DIGITS[before + 1]


def _write_images(
    folder: Path, drawn: Iterator[tuple[dict[str, Any], NDArray[np.uint8] | None]]
) -> list[dict[str, Any]]:
    """Write the pictures; returns the records."""
    from PIL import Image

    records = []
    for record, pixels in drawn:
        if pixels is not None:
            Image.fromarray(pixels).save(folder / record["image"])
        records.append(record)
    return records
