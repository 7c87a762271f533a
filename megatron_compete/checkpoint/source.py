"""A model to make a checkpoint of, as it was read: what is known of it, and what goes along."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.hf_tokenizer import Ids, copy_tokenizer, write_generation
from megatron_compete.checkpoint.megatron_writer import Chunk

TOKENIZER = "tokenizer"
"""Folder in an import."""


@dataclass(frozen=True)
class Source:
    """A model, its tensors not yet read."""

    folder: Path
    arguments: dict[str, Any]
    """By Megatron's names."""
    chunks: list[Chunk]
    notes: tuple[str, ...] = ()
    """What was left out, and what a trainer will round."""
    write_files: Callable[[Path], None] | None = None
    """Puts the tokenizer, and what else training and export need beside the weights, into a folder."""


def tokenizer_arguments(source: Path, target: Path, ids: Ids) -> dict[str, Any]:
    """Megatron's tokenizer arguments, and the special ids, which only Hugging Face keeps beside the model.

    Args:
        target: where the tokenizer of the folder `source` will lie.
    """
    has_tokenizer = any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return {
        "tokenizer_type": "HuggingFaceTokenizer" if has_tokenizer else "NullTokenizer",
        "tokenizer_model": str(target) if has_tokenizer else None,
        **{f"hf_{name}": value for name, value in ids.items()},
    }


def copy_files(source: Path, ids: Ids, target: Path) -> None:
    """The tokenizer and, since training keeps no other file of the model's, its generation settings."""
    copy_tokenizer(source, target)
    write_generation(source, target, ids)


def dtype_notes(chunks: Sequence[Chunk]) -> Iterator[str]:
    """What a trainer will round, where dtypes differ."""
    sizes: dict[str, int] = defaultdict(int)
    for chunk in chunks:
        sizes[str(chunk.dtype).removeprefix("torch.")] += chunk.nbytes
    if len(sizes) > 1:
        shown = ", ".join(f"{dtype} ({size / 1e6:.1f} MB)" for dtype, size in sorted(sizes.items()))
        yield f"stored as {shown}, and kept so; a trainer loads all of it in its own precision but score-correction biases"
