#!/usr/bin/env python3
"""A vision-language model that learns to read handwritten digits, on this machine's CPUs, in a few minutes.

Pictures of four coloured digits and questions about them (scikit-learn's digits) -> a small SigLIP that has learned digits,
and a Llama that knows nothing -> one Megatron checkpoint of both -> training, dense -> tower and projector upcycled to
experts -> training with competition -> export -> answers to held-out questions, through transformers alone. Every step
but the first two is a command that a user would type; output is in runs/demo-vlm/logs. `make demo-vlm` runs this.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from answers import Scores, ask, draw_answers
from digit_tower import write_text_model, write_tower
from rich.table import Table
from steps import ROOT, Run, console, run

from megatron_compete.common.errors import CompeteError, run_command
from megatron_compete.data.digit_pictures import DigitPictures, write_digit_pictures
from megatron_compete.data.digit_processor import write_digit_processor
from megatron_compete.report.scalars import read_scalars

FOLDERS = ("pictures", "processor", "tower", "text", "untrained", "dense", "upcycled", "experts", "hf", "logs")
RECIPE = ROOT / "examples" / "vlm_digits.yaml"
DENSE = "--num-experts=false --router topk --experts-in=false --compete-preset=false --compete-rate=false --lr 2e-3"
TRAIN, HELDOUT = 16_000, 1_000
DENSE_STEPS, STEPS, A_MAX = 450, 400, 3
PROMISED = {"digit": 0.8, "colour": 0.95}
"""Exact match on held-out pictures, by kind of question."""


def prepare(demo: Run) -> DigitPictures:
    """Pictures, tokenizer, and the two models that are put together."""
    pictures = write_digit_pictures(demo.pictures, train=TRAIN, heldout=HELDOUT)
    write_digit_processor(demo.processor)
    _write_texts(pictures, demo.pictures / "heldout.txt")
    console.print(f"[bold]pictures[/bold]  {TRAIN:,} with questions, {HELDOUT:,} held out, of other people's digits")
    write_text_model(demo.text, demo.processor)
    learned = write_tower(demo.tower, pictures, demo.processor)
    console.print(
        f"[bold]tower[/bold]  a SigLIP of 4 layers, trained to name the digit in a patch: {learned:.0%} of held-out ones"
    )
    convert("put tower and language model together", demo, "1-compose", [
        "--to", "megatron", "--checkpoint", str(demo.text), "--vision-tower", str(demo.tower), "--output", str(demo.untrained),
    ])  # fmt: skip
    return pictures


def _write_texts(pictures: DigitPictures, path: Path) -> None:
    """Questions and answers as plain text, on which an export is compared with Megatron's model."""
    turns = [
        turn["value"] for record in json.loads(pictures.heldout_path.read_text()) for turn in record["conversations"]
    ]
    path.write_text(" ".join(turns).replace("<image>\n", ""))


def convert(title: str, demo: Run, log: str, flags: list[str]) -> None:
    """One conversion."""
    run(title, [sys.executable, "-m", "megatron_compete", "convert", *flags], demo.logs / f"{log}.log")


def pretrain(
    title: str, demo: Run, pictures: DigitPictures, log: str, start: Path, save: Path, flags: list[str]
) -> None:
    """Train from the weights of `start` into `save`."""
    run(title, [
        sys.executable, "-m", "megatron_compete", "pretrain", "--recipe", str(RECIPE), "--finetune",
        "--pretrained-checkpoint", str(start), "--save", str(save), "--tensorboard-dir", str(save / "tensorboard"),
        "--train-data-path", str(pictures.train_path), "--valid-data-path", str(pictures.heldout_path),
        "--image-folder", str(pictures.image_folder), "--tokenizer-model", str(demo.processor),
        "--image-processor", str(demo.processor), "--data-cache-path", str(demo.pictures / "cache"), *flags,
    ], demo.logs / f"{log}.log")  # fmt: skip


def answers_of(demo: Run, pictures: DigitPictures, checkpoint: Path, log: str) -> Scores:
    """What the checkpoint answers to held-out questions, exported and loaded by transformers alone."""
    folder = demo.hf / checkpoint.name
    verify = ["--verify", str(demo.pictures / "heldout.txt")] if checkpoint == demo.experts else []
    convert(f"export {checkpoint.name}", demo, log, [
        "--to", "hf", "--checkpoint", str(checkpoint), "--output", str(folder), *verify,
    ])  # fmt: skip
    return ask(folder, pictures)


def summarise(demo: Run, found: dict[str, Scores], seconds: float) -> None:
    """The table at the end, and the picture of some answers."""
    active = list(read_scalars(demo.experts / "tensorboard")["competition/active-layers"].values())
    table = Table(title="Held-out questions answered exactly", title_justify="left")
    for column in ("question", *found):
        table.add_column(column)
    for kind in found["experts"].by_kind:
        table.add_row(kind, *(f"{scores.by_kind[kind]:.1%}" for scores in found.values()))
    console.print(table)
    picture = draw_answers(demo.folder / "answers.png", found)
    console.print(
        f"competing layers: at {sum(count > 0 for count in active)} of {len(active)} steps, at most {max(active):.0f} (A_max {A_MAX})"
    )
    console.print(
        f"samples: {picture.relative_to(ROOT)}   model: {(demo.hf / 'experts').relative_to(ROOT)}   {seconds:.0f} s"
    )


def check(demo: Run, found: dict[str, Scores]) -> None:
    """What the demo promises."""
    active = read_scalars(demo.experts / "tensorboard")["competition/active-layers"]
    scores = found["experts"].by_kind
    promises: dict[str, Any] = {
        f"never more than {A_MAX} layers compete": max(active.values()) <= A_MAX,
        "steps with and without competition": min(active.values()) == 0 < max(active.values()),
        "better than untrained": scores["digit"] > found["untrained"].by_kind["digit"] + 0.3,
        **{f"{kind}: {least:.0%} of the answers": scores[kind] > least for kind, least in PROMISED.items()},
    }
    broken = [promise for promise, kept in promises.items() if not kept]
    if broken:
        raise CompeteError(f"the demo ran, but did not show: {', '.join(broken)}")


def main() -> None:
    """Run the demo from scratch into runs/demo-vlm."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    torch.set_num_threads(1)  # it was imported before the variable was set
    began = time.monotonic()
    demo = Run(ROOT / "runs" / "demo-vlm", FOLDERS)
    shutil.rmtree(demo.folder, ignore_errors=True)
    demo.logs.mkdir(parents=True)
    pictures = prepare(demo)
    found = {"untrained": answers_of(demo, pictures, demo.untrained, "2-export-untrained")}
    pretrain("train the dense model", demo, pictures, "3-dense", demo.untrained, demo.dense, [*DENSE.split(), "--train-iters", str(DENSE_STEPS)])  # fmt: skip
    found["dense"] = answers_of(demo, pictures, demo.dense, "4-export-dense")
    convert("upcycle tower and projector to 4 experts", demo, "5-upcycle", [
        "--to", "megatron", "--from", "megatron", "--checkpoint", str(demo.dense), "--output", str(demo.upcycled),
        "--upcycle-experts", "4", "--experts-in", "vision", "projector",
    ])  # fmt: skip
    pretrain(
        "train with competition",
        demo,
        pictures,
        "6-experts",
        demo.upcycled,
        demo.experts,
        ["--train-iters", str(STEPS)],
    )
    found["experts"] = answers_of(demo, pictures, demo.experts, "7-export-experts")
    summarise(demo, found, time.monotonic() - began)
    (demo.folder / "answers.json").write_text(
        json.dumps({name: scores.by_kind for name, scores in found.items()}, indent=2)
    )
    check(demo, found)


if __name__ == "__main__":
    run_command(main)
