"""Functions of digit_pictures.yaml; a document is a record of `write_digit_pictures`."""

from typing import Any

from PIL import Image

from megatron_compete.data.digit_answers import is_right


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    """The record's picture, or none."""
    return [Image.open(f"images/{doc['image']}").convert("RGB")] if doc.get("image") else []


def question(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """Without `<image>`, which a model puts in front as it was trained."""
    return str(doc["conversations"][0]["value"]).removeprefix("<image>\n")


def answer(doc: dict[str, Any]) -> str:
    return str(doc["conversations"][1]["value"])


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 or 0, for the mean over all records and over those of the record's kind."""
    right = float(is_right(results[0], answer(doc)))
    return {"exact_match": right, f"exact_match_{doc['kind']}": right}
