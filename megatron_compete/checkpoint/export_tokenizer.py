"""The tokenizer of an export: converted from SentencePiece with a proof, copied where it is Hugging Face's, or none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from megatron_compete.checkpoint.hf_tokenizer import (
    ID_NAMES,
    Ids,
    copy_tokenizer,
    generation_settings,
    has_tokenizer,
    id_settings,
    ids_in,
    special_ids,
)
from megatron_compete.checkpoint.tokenizer import SentencePieceModel, read_sentencepiece, write_tokenizer
from megatron_compete.checkpoint.tokenizer_proof import prove
from megatron_compete.common.errors import CompeteError

SENTENCEPIECE_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")
"""--tokenizer-type under which Megatron builds a plain SentencePiece tokenizer."""

HUGGING_FACE = "HuggingFaceTokenizer"
WITHOUT_TOKENIZER = "NullTokenizer"

SPACE_ALWAYS = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""Families for which llama.cpp's converter takes a SentencePiece model and does not read add_prefix_space."""


class ExportTokenizer(Protocol):
    """What an export needs of its tokenizer."""

    ids: Ids
    vocab_size: int | None
    """Ids in use; None keeps the model's padding."""
    generation: dict[str, Any]
    """Content of generation_config.json."""

    def write(self, folder: Path, max_length: int) -> None:
        """Write its files beside config.json."""
        ...

    def prove(self, folder: Path, text: Path | None) -> int | None:
        """Compare the written tokenizer with that of training: strings compared, or None where there is nothing to."""
        ...

    def caution(self, family: str) -> str | None:
        """What a reader of the export should know of other programs."""
        ...


@dataclass
class Converted:
    """A SentencePiece model as a fast tokenizer."""

    model: SentencePieceModel

    def __post_init__(self) -> None:
        model = self.model
        self.ids: Ids = {"bos_token_id": model.bos_id, "eos_token_id": model.eos_id, "pad_token_id": model.pad_id}
        self.vocab_size: int | None = model.vocab_size
        self.generation: dict[str, Any] = id_settings(self.ids)

    def write(self, folder: Path, max_length: int) -> None:
        """`tokenizer.json` and what belongs to it."""
        write_tokenizer(self.model, folder, max_length)

    def prove(self, folder: Path, text: Path | None) -> int | None:
        """Against SentencePiece itself."""
        return prove(folder, self.model, text)

    def caution(self, family: str) -> str | None:
        """Where llama.cpp gives other ids, which no file of the export can change."""
        if self.model.remove_extra_whitespaces:
            return "llama.cpp keeps runs of spaces, which this tokenizer squeezes: a GGUF file gives other ids for them"
        if family in SPACE_ALWAYS and not self.model.add_dummy_prefix:
            return (
                "llama.cpp's converter puts a space before every prompt of a Qwen model: run a GGUF file with "
                "--override-kv tokenizer.ggml.add_space_prefix=bool:false"
            )
        return None


@dataclass
class Copied:
    """The files of a Hugging Face tokenizer: those that training read."""

    source: Path
    vocab_size: int | None
    ids: Ids
    generation: dict[str, Any]

    def write(self, folder: Path, max_length: int) -> None:
        """Copy them."""
        copy_tokenizer(self.source, folder)

    def prove(self, folder: Path, text: Path | None) -> int | None:
        """The same files: nothing to compare."""
        return None

    def caution(self, family: str) -> str | None:
        """None: they are as their makers wrote them."""
        return None


@dataclass
class Absent:
    """No tokenizer."""

    vocab_size: int | None
    ids: Ids
    generation: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, max_length: int) -> None:
        """Nothing."""

    def prove(self, folder: Path, text: Path | None) -> int | None:
        """Nothing."""
        return None

    def caution(self, family: str) -> str | None:
        """Nothing."""
        return None


def export_tokenizer(arguments: Mapping[str, Any], named: Path | None, without: bool) -> ExportTokenizer:
    """The tokenizer of a model trained with `arguments`.

    Args:
        named: a SentencePiece model, or a Hugging Face folder; None takes the path in the arguments.
        without: leave it out.
    Raises:
        CompeteError: it is not there, or has no exact equal.
    """
    kind = arguments.get("tokenizer_type")
    vocab_size = int(arguments["vocab_size"]) if arguments.get("vocab_size") else None
    folder = named if named is not None and named.is_dir() else None
    if named is None and kind == HUGGING_FACE:
        folder = Path(str(arguments.get("tokenizer_model")))
    generation = {} if folder is None else generation_settings(folder)
    ids = ids_in({name: arguments.get(f"hf_{name}") for name in ID_NAMES})
    imported = any(value is not None for value in ids.values())  # training does not keep them
    if without or (kind == WITHOUT_TOKENIZER and named is None):
        return Absent(vocab_size, ids if imported else ids_in(generation), generation or id_settings(ids))
    if folder is not None:
        _check_there(folder)
        ids = ids if imported else ids_in(special_ids(folder), generation)
        return Copied(folder, vocab_size, ids, generation or id_settings(ids))
    if named is None and kind not in SENTENCEPIECE_TYPES:
        raise CompeteError(
            f"trained with --tokenizer-type {kind}: only SentencePiece tokenizers can be converted. Export the weights "
            "with --no-tokenizer and put the tokenizer's own files beside them"
        )
    return Converted(_sentencepiece(arguments, named))


def _check_there(folder: Path) -> None:
    if not has_tokenizer(folder):
        raise CompeteError(
            f"trained with the Hugging Face tokenizer {folder}, whose files are not there: give their folder as "
            "--tokenizer-model, or export the weights alone with --no-tokenizer"
        )


def _sentencepiece(arguments: Mapping[str, Any], named: Path | None) -> SentencePieceModel:
    for name in ("tokenizer_sentencepiece_legacy", "special_tokens"):
        if arguments.get(name):
            flag = "--" + name.replace("_", "-")
            raise CompeteError(
                f"trained with {flag}: ids that the SentencePiece model does not know; use --no-tokenizer"
            )
    model = read_sentencepiece(named or Path(str(arguments.get("tokenizer_model"))))
    if named is not None:
        _check_padding(model, arguments)
    if model.remove_extra_whitespaces and not arguments.get("tokenizer_sentencepiece_ignore_extra_whitespaces", True):
        raise CompeteError(
            "trained with extra spaces kept in Megatron's own way, which has no equal; use --no-tokenizer"
        )
    return model


def _check_padding(model: SentencePieceModel, arguments: Mapping[str, Any]) -> None:
    """A tokenizer that was named by hand has the size from which Megatron made the model's (`vocab_size_with_padding`)."""
    rows = arguments.get("padded_vocab_size")
    multiple = int(arguments.get("make_vocab_size_divisible_by") or 128) * int(
        arguments.get("tensor_model_parallel_size") or 1
    )
    if rows and -(-model.vocab_size // multiple) * multiple != rows:
        raise CompeteError(
            f"--tokenizer-model {model.path} has {model.vocab_size} ids, which does not make the model's {rows} rows "
            f"(a multiple of {multiple}): it was trained with another tokenizer"
        )
