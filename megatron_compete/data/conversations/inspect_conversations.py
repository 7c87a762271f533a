"""What visual instruction data hold, and which samples cannot be used: what a run finds at its start, without one.

    megatron-compete conversations data.json --image-folder images --tokenizer-model hf --img-h 384 --img-w 384 --show 0

prints samples, images, turns and lengths, and every kind of fault. It exits with 1 if a sample cannot be used.
"""

import argparse
import logging
import warnings
from collections import Counter
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron_compete.common.command_line import Command, add_options, option, take_options
from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.bad_samples import details, summary, write_report
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.packing import pack
from megatron_compete.data.conversations.sample_list import SampleList, summary_lines
from megatron_compete.data.inspect.lengths import count_lengths, histogram_lines

if TYPE_CHECKING:
    from megatron_compete.data.conversations.reader import Reader

BAD_EXIT_CODE = 1
PACKING_SEED = 1234
"""Megatron's default of --seed; others pack about as tightly."""

OF_TRAINING = ("group_by_modality", "skip_bad", "energon_path", "dataloader_save")
"""Settings that say nothing about samples."""


@dataclass(frozen=True)
class InspectOptions:
    """The command's flags besides the data's."""

    files: tuple[str, ...] = option(MISSING, "files", metavar="FILE", help="JSON arrays or JSON Lines of conversations")

    tokenizer_model: str = option(metavar="FOLDER", help="Hugging Face folder of the tokenizer")

    img_h: int = option(metavar="PIXELS", help="height of a tile")

    img_w: int = option(metavar="PIXELS", help="width of a tile")

    image_token: str = "<image>"
    """Its token that stands for an image."""

    vision_model_type: Literal["siglip", "clip"] = "siglip"
    """Kind of vision tower, whose image processor is taken where --image-processor names none."""

    patch_dim: int = option(14, metavar="PIXELS", help="side of a patch")

    disable_vision_class_token: bool = False
    """As the trainer's: a clip tower's class token is no embedding."""

    seq_length: int = 2048
    """Positions of a sequence, image embeddings included."""

    show: tuple[int, ...] = option((), metavar="N", help="usable samples to show as text, from 0; -1 is the last")

    report: str | None = option(
        None, metavar="FILE.json", help="write every sample that cannot be used, with its reason"
    )


def content_lines(samples: SampleList, reader: "Reader") -> list[str]:
    """Counts, turns, lengths, and how full sequences get."""
    lines = [f"{', '.join(samples.files)}: {samples.total} samples", *summary_lines(samples)]
    if not len(samples):
        return lines
    turns = Counter(_questions(samples, reader))
    most = ", ".join(f"{count} with {number}" for number, count in sorted(turns.items())[:6])
    lines.append(f"questions a sample: {most}{', ...' if len(turns) > 6 else ''}")
    lengths = count_lengths([samples.length])
    share = lengths.mean / reader.seq_length
    lines.append(
        f"positions a sample: {lengths.shortest} to {lengths.longest}, mean {lengths.mean:.1f}, {share:.1%} of --seq-length "
        f"{reader.seq_length}"
    )
    lines += histogram_lines(lengths, "samples", "positions")
    packs = pack(samples.length, reader.seq_length, PACKING_SEED)
    full = int(samples.length.sum()) / (len(packs) * reader.seq_length)
    return [*lines, f"packed (--pack-conversations): {len(packs)} sequences, {full:.1%} full"]


def _questions(samples: SampleList, reader: "Reader") -> list[int]:
    """Of each sample."""
    found = []
    for index, place in map(samples.index_of, range(len(samples))):
        messages = reader.conversation(index.read(place)).messages
        found.append(sum(message["role"] == "user" for message in messages))
    return found


def shown_sample(samples: SampleList, reader: "Reader", number: int) -> list[str]:
    """A sample as the model reads it, with what is learned between « and ».

    Raises:
        CompeteError: there is no such sample.
    """
    if not -len(samples) <= number < len(samples):
        raise CompeteError(f"--show {number}: there are {len(samples)} usable samples, 0 to {len(samples) - 1}")
    number %= len(samples)
    index, place = samples.index_of(number)
    conversation = reader.conversation(index.read(place))
    encoded = reader.chat.encode(conversation.messages, len(conversation.images))
    edges = np.flatnonzero(np.diff(encoded.learned)) + 1
    parts = np.split(encoded.ids, edges)
    texts = [reader.chat.tokenizer.decode(part) for part in parts]
    text = "".join(f"«{part}»" if learned else part for part, learned in zip(texts, encoded.learned[[0, *edges]]))
    tiles = samples.tiles_of(number)
    images = ", ".join(f"{name} ({count} tiles)" for name, count in zip(conversation.images, tiles))
    return [f"--- sample {number}, {samples.length[number]} positions{f', {images}' if images else ''}", text]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags and the data's."""
    add_options(parser, InspectOptions)
    add_options(parser.add_argument_group("conversations and images"), ConversationConfig, without=OF_TRAINING)


def run(namespace: argparse.Namespace) -> None:
    """Check the data and show them."""
    from megatron_compete.data.conversations.checks import list_samples

    given = vars(namespace)
    options, config = take_options(InspectOptions, given), take_options(ConversationConfig, given)
    reader = _reader(options, config)
    samples = list_samples(options.files, reader)
    print("\n".join(content_lines(samples, reader)))
    for number in options.show:
        print("\n".join(shown_sample(samples, reader, number)))
    if options.report:
        write_report(Path(options.report), samples.findings, samples.total)
    if samples.findings:
        print(summary(samples.findings, samples.total).replace("left out", "bad:", 1))
        print("\n".join(f"bad: {line}" for line in details(samples.findings)))
        raise SystemExit(BAD_EXIT_CODE)


def _reader(options: InspectOptions, config: ConversationConfig) -> "Reader":
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # of CUDA, which checks do not need
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron_compete.vlm.parts import image_embeddings
    from transformers import AutoTokenizer

    from megatron_compete.data.conversations.build import build_reader

    try:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer_model, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        raise CompeteError(f"--tokenizer-model {options.tokenizer_model} cannot be read: {error}") from error
    embeddings = image_embeddings(
        options.img_h, options.img_w, options.patch_dim, options.vision_model_type, options.disable_vision_class_token
    )
    return build_reader(
        config,
        tokenizer,
        vision_model_type=options.vision_model_type,
        img_h=options.img_h,
        img_w=options.img_w,
        seq_length=options.seq_length,
        image_embeddings=embeddings,
        image_token=options.image_token,
    )


main = Command(
    name="conversations",
    description="Check conversations and images (LLaVA's JSON) and show what they hold; exit code 1 if a sample cannot be used.",
    epilog="""Flags are those of training; what it would stop at or skip is counted by kind. All samples are looked at, images as
    --check-images says.""",
    example="data.json --image-folder images --tokenizer-model hf --img-h 384 --img-w 384 --show 0",
    add_arguments=add_arguments,
    run=run,
)
