"""The tokenizer that Megatron's flags name: built as the trainer builds it, and known again by its fingerprint."""

import hashlib
import logging
import os
import warnings
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, Literal, cast

from megatron_compete.common.command_line import option
from megatron_compete.common.errors import CompeteError
from megatron_compete.data.manifest import TokenizerOptions

SENTENCEPIECE_TYPES = frozenset({"SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"})
"""Names under which Megatron builds one and the same tokenizer."""

HUGGING_FACE_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
"""Files of a Hugging Face folder that decide about ids; the first one there is speaks for vocab.json and the rest."""

HUB_NAMES = {
    "GPT2BPETokenizer": "gpt2",
    "BertWordPieceLowerCase": "bert-large-uncased",
    "BertWordPieceCase": "bert-large-cased",
}
"""Types whose configuration Megatron takes from the Hugging Face hub, whatever --vocab-file says
(megatron/core/tokenizers/text/libraries/megatron_hf_tokenizer.py)."""

# What `build_tokenizer` reads besides the flags of `TokenizerChoice`, which has nothing to do with the ids of a text:
# the defaults of Megatron's TokenizerConfig.
_OTHER_DEFAULTS: dict[str, Any] = {
    "chat_template": None,
    "force_system_message": False,
    "image_tag_type": "",
    "metadata_path": None,
    "null_tokenizer_pad_id": -1,
    "pad_vocab_size": False,  # padding is the model's business
    "sft_tokenizer_prompt_format": "nemotron-h-aligned",
    "tokenizer_prompt_format": None,
}


@dataclass(frozen=True)
class TokenizerChoice:
    """Megatron's tokenizer flags, under Megatron's names."""

    tokenizer_type: str = option(
        metavar="TYPE",
        help="SentencePieceTokenizer, HuggingFaceTokenizer, GPT2BPETokenizer, TikTokenizer, NullTokenizer, or any other "
        "that Megatron builds",
    )

    tokenizer_model: str | None = option(None, metavar="PATH")
    """A SentencePiece or tiktoken file, a Hugging Face folder or hub name."""

    vocab_size: int | None = None
    """What NullTokenizer and TikTokenizer need to be told; the others know it."""

    vocab_file: str | None = option(None, metavar="FILE", help="of GPT2BPETokenizer and Bert's")

    merge_file: str | None = option(None, metavar="FILE", help="of GPT2BPETokenizer")

    special_tokens: tuple[str, ...] | None = option(
        None, "--tokenizer-special-tokens", metavar="TOKEN", help="as Megatron takes them"
    )

    tiktoken_pattern: Literal["v1", "v2"] | None = None
    """How TikTokenizer splits text into words (default: Megatron's, v2)."""

    tiktoken_num_special_tokens: int = 1000
    """Ids that TikTokenizer reserves in front."""

    tokenizer_sentencepiece_legacy: bool = False
    """Special tokens on top of a SentencePiece model."""

    tokenizer_sentencepiece_ignore_extra_whitespaces: bool = option(
        True,
        "--no-tokenizer-sentencepiece-ignore-extra-whitespaces",
        "--disable-tokenizer-sentencepiece-ignore-extra-whitespaces",
        help="keep runs of spaces with a model that was trained to drop them",
    )

    tokenizer_hf_no_use_fast: bool = False
    """The Hugging Face tokenizer in Python."""

    tokenizer_hf_no_include_special_tokens: bool = False
    """No <s> or [CLS] around documents of a Hugging Face tokenizer: Megatron puts them there otherwise."""

    trust_remote_code: bool = False
    """Let a Hugging Face tokenizer run code of its own."""

    null_tokenizer_eod_id: int | None = option(None, metavar="ID", help="end of document of NullTokenizer")

    @classmethod
    def from_arguments(cls, args: Any) -> "TokenizerChoice":
        """The tokenizer of a parsed namespace with Megatron's names, the trainer's for example."""
        given = {field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)}
        if isinstance(given.get("special_tokens"), list):
            given["special_tokens"] = tuple(given["special_tokens"])
        return cls(**given)

    @property
    def options(self) -> TokenizerOptions:
        """What differs from Megatron's defaults besides type and files, for the manifest: these change ids too."""
        named = ("tokenizer_type", "tokenizer_model", "vocab_size", "vocab_file", "merge_file", "trust_remote_code")
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        differing = {
            name: list(value) if isinstance(value, tuple) else value
            for name, (value, default) in values.items()
            if name not in named and value != default
        }
        return cast(TokenizerOptions, differing)

    @property
    def library(self) -> str:
        """One name for the types that Megatron builds alike."""
        return "SentencePiece" if self.tokenizer_type in SENTENCEPIECE_TYPES else self.tokenizer_type

    def arguments(self) -> SimpleNamespace:
        """The namespace that Megatron's `build_tokenizer` wants."""
        flags = {field.name: getattr(self, field.name) for field in fields(self)}
        special_tokens = None if self.special_tokens is None else list(self.special_tokens)
        return SimpleNamespace(**_OTHER_DEFAULTS | flags | {"special_tokens": special_tokens})

    def describe(self) -> str:
        """The flags as typed."""
        flags = {
            "--tokenizer-type": self.tokenizer_type,
            "--tokenizer-model": self.tokenizer_model,
            "--vocab-file": self.vocab_file,
            "--merge-file": self.merge_file,
        }
        return " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)

    def check_files(self) -> None:
        """Find a wrong path before Megatron is imported.

        Raises:
            CompeteError: a file that the flags name is not there.
        """
        for flag, path in (("--vocab-file", self.vocab_file), ("--merge-file", self.merge_file)):
            if path is not None and not os.path.isfile(path):
                raise CompeteError(f"{flag} {path}: no such file")
        if self.tokenizer_type == "MultimodalTokenizer":
            raise CompeteError(
                "--tokenizer-type MultimodalTokenizer: Megatron-Core's build_tokenizer gives it no path and cannot build "
                "it; for text, its folder serves as --tokenizer-type HuggingFaceTokenizer --tokenizer-model FOLDER"
            )
        check_named(self.tokenizer_type, self.tokenizer_model)
        if self.library == "SentencePiece":
            if self.tokenizer_model is None:
                raise CompeteError(f"--tokenizer-type {self.tokenizer_type} needs --tokenizer-model FILE.model")
            if not os.path.isfile(self.tokenizer_model):
                raise CompeteError(
                    f"--tokenizer-model {self.tokenizer_model}: no such file; megatron-compete tokenizer makes one"
                )

    def build(self) -> Any:
        """The tokenizer, as the trainer would build it.

        Raises:
            CompeteError: the type is unknown, a file is missing or unreadable, or `--vocab-size` contradicts it.
        """
        self.check_files()
        build_tokenizer = _import_build_tokenizer()
        try:
            tokenizer = build_tokenizer(self.arguments())
        except Exception as error:  # every library raises its own kind
            raise CompeteError(
                f"cannot build the tokenizer {self.describe()}: {error or type(error).__name__}{self._hint()}"
            ) from None
        given, own = self.vocab_size, id_count(tokenizer)
        if given is not None and given != own and not self.tokenizer_type.startswith("Null"):
            raise CompeteError(f"--vocab-size {given}, but {self.describe()} has {own} ids: leave --vocab-size out")
        return tokenizer

    def _hint(self) -> str:
        """The way out where a hub cannot be reached."""
        if self.tokenizer_type not in HUB_NAMES:
            return ""
        return (
            f". Megatron reads the configuration of {self.tokenizer_type} from the hub as "
            f"{HUB_NAMES[self.tokenizer_type]}: without a network, --tokenizer-type HuggingFaceTokenizer with a folder "
            "of the same files gives the same ids"
        )

    def fingerprint(self) -> str | None:
        """Sha256 over the files that decide about ids; None where there are none (NullTokenizer, a hub name)."""
        files = _deciding_files(self.tokenizer_model) + [file for file in (self.vocab_file, self.merge_file) if file]
        if not files:
            return None
        if len(files) == 1:
            return _sha256(files[0])
        return hashlib.sha256("".join(map(_sha256, files)).encode()).hexdigest()


def check_named(tokenizer_type: str | None, tokenizer_model: str | None) -> None:
    """Raise a `CompeteError` for a Hugging Face tokenizer without a folder: transformers would ask the hub for None."""
    if tokenizer_type == "HuggingFaceTokenizer" and tokenizer_model is None:
        raise CompeteError(
            f"--tokenizer-type {tokenizer_type} needs --tokenizer-model FOLDER: an import has one in DIR/tokenizer"
        )


def id_count(tokenizer: Any) -> int:
    """Ids that a model needs for a tokenizer of Megatron's: its largest one plus 1.

    Megatron's `vocab_size` of a Hugging Face tokenizer is the number of its tokens, which is less where ids have holes
    (megatron/core/tokenizers/text/libraries/huggingface_tokenizer.py).
    """
    wrapped = getattr(getattr(tokenizer, "_tokenizer", None), "tokenizer", None)
    get_vocab = getattr(wrapped, "get_vocab", None)
    largest = max(get_vocab().values(), default=-1) if callable(get_vocab) else -1
    return max(int(tokenizer.vocab_size), largest + 1)


def _deciding_files(model: str | None) -> list[str]:
    if model is None:
        return []
    if os.path.isfile(model):
        return [model]
    present = [os.path.join(model, name) for name in HUGGING_FACE_FILES if os.path.isfile(os.path.join(model, name))]
    return present[:1] if present and present[0].endswith(("tokenizer.json", ".model")) else present


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _import_build_tokenizer() -> Any:
    """Import of megatron.core without its warnings about missing CUDA libraries, which tokenising does not need."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    return build_tokenizer
