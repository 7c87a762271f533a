"""Answers of an exported vision-language model to held-out questions, through transformers alone."""

import json
import textwrap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from megatron_compete.data.digit_answers import exact_match, is_right
from megatron_compete.data.digit_pictures import DigitPictures

BATCH = 100
LONGEST = 9
"""Tokens of the longest answer, a caption of four digits in their colours and the end."""


@dataclass(frozen=True)
class Answer:
    """One question, what was answered and what should have been."""

    record: dict[str, Any]
    given: str
    image: Path | None

    @property
    def question(self) -> str:
        return str(self.record["conversations"][0]["value"]).removeprefix("<image>\n")

    @property
    def expected(self) -> str:
        return str(self.record["conversations"][1]["value"])

    @property
    def right(self) -> bool:
        return is_right(self.given, self.expected)


@dataclass(frozen=True)
class Scores:
    """All answers of one model."""

    answers: tuple[Answer, ...]

    @property
    def by_kind(self) -> dict[str, float]:
        """Share of the answers that are exactly right, by kind of question and of all."""
        return exact_match((answer.record["kind"], answer.given, answer.expected) for answer in self.answers)


def ask(model_folder: Path, pictures: DigitPictures) -> Scores:
    """Greedy answers of the model in a Hugging Face folder to the held-out questions."""
    processor = AutoProcessor.from_pretrained(model_folder, trust_remote_code=True)
    processor.tokenizer.padding_side = "left"
    model = AutoModelForImageTextToText.from_pretrained(model_folder, trust_remote_code=True).eval()
    records = json.loads(pictures.heldout_path.read_text())
    answers = []
    for with_image in (True, False):
        some = [record for record in records if ("image" in record) == with_image]
        for start in range(0, len(some), BATCH):
            answers += _answers(model, processor, some[start : start + BATCH], pictures.image_folder)
    return Scores(tuple(answers))


@torch.no_grad()
def _answers(model: Any, processor: Any, records: list[dict[str, Any]], images: Path) -> list[Answer]:
    """Answers to questions that all have a picture, or none of which has one."""
    paths = [images / record["image"] if "image" in record else None for record in records]
    prompts = [_prompt(processor, record) for record in records]
    opened = [Image.open(path) for path in paths if path is not None] or None
    inputs = processor(images=opened, text=prompts, padding=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    given = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [Answer(record, text.strip(), path) for record, text, path in zip(records, given, paths)]


def _prompt(processor: Any, record: dict[str, Any]) -> str:
    question = record["conversations"][0]["value"].removeprefix("<image>\n")
    content = [{"type": "image"}] if "image" in record else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    return str(processor.apply_chat_template(messages, add_generation_prompt=True))


def draw_answers(path: Path, found: dict[str, Scores], count: int = 8) -> Path:
    """A figure of held-out pictures, with what each model answered; the first questions of each kind that have one."""
    import matplotlib.pyplot as plt

    final = list(found.values())[-1].answers
    shown = _of_each_kind([number for number, answer in enumerate(final) if answer.image], final, count)
    figure, axes = plt.subplots(2, count // 2, figsize=(14, 7.4))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.94, bottom=0.16, hspace=0.75, wspace=0.05)
    for axis, number in zip(axes.flat, shown):
        answer = final[number]
        assert answer.image is not None
        axis.imshow(Image.open(answer.image), interpolation="nearest")
        axis.set_axis_off()
        axis.set_title(answer.question, fontsize=12, fontweight="bold")
        for line, (name, scores) in enumerate(found.items()):
            given = scores.answers[number]
            colour = "#0072b2" if given.right else "#d55e00"  # apart for colour-blind readers too
            text = f"{name}: {_short(given.given)} {'✓' if given.right else '✗'}"
            axis.text(0.5, -0.1 - 0.14 * line, text, transform=axis.transAxes, ha="center", fontsize=9.5, color=colour)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def _of_each_kind(numbers: list[int], answers: tuple[Answer, ...], count: int) -> list[int]:
    """`count` of the numbers, of every kind of question as many, in turn."""
    by_kind: dict[str, list[int]] = defaultdict(list)
    for number in numbers:
        by_kind[answers[number].record["kind"]].append(number)
    turns = zip(*(iter(of_kind) for _, of_kind in sorted(by_kind.items())))
    return [number for turn in turns for number in turn][:count]


def _short(text: str) -> str:
    """What an untrained model says goes on and on."""
    return textwrap.shorten(text, 44, placeholder=" ...") or "nothing"
