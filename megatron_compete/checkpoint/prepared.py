"""A trained model, ready to be written as a Hugging Face folder: all that is decided before the first tensor is read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_compete.checkpoint.export_tokenizer import ExportTokenizer
from megatron_compete.checkpoint.families import Family
from megatron_compete.checkpoint.reader import TensorInfo
from megatron_compete.common.errors import CompeteError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Tensors(Protocol):
    """The exported tensors, one at a time."""

    def sizes(self) -> Mapping[str, TensorInfo]:
        """Shape and dtype of each, in the order of `__iter__`."""
        ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor."""
        ...


def _nothing(folder: Path) -> None:
    pass


@dataclass(frozen=True)
class Prepared:
    """What an export writes."""

    family: Family
    """Of the language model."""
    config: dict[str, Any]
    plan: Tensors
    tokenizer: ExportTokenizer
    code: tuple[str, ...]
    """Files of `custom_code`."""
    max_length: int
    """Of a sequence."""
    card: Callable[[bool], str]
    """Text of the README.md, of a folder with or without a tokenizer."""
    cautions: tuple[str, ...] = ()
    """What its reader should know."""
    write_more: Callable[[Path], None] = _nothing
    """Writes other files."""


def check_rows(rows: int, tokenizer: ExportTokenizer) -> None:
    """Raise a `CompeteError` where the tokenizer has more ids than the model's embedding has rows."""
    if tokenizer.vocab_size is not None and tokenizer.vocab_size > rows:
        raise CompeteError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model embeds {rows}: "
            "it was trained with another one, name that with --tokenizer-model"
        )
