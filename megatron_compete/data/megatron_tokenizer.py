"""The tokenizer that Megatron's flags name: built as the trainer builds it, and known again by its fingerprint."""

import hashlib
import logging
import os
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from megatron_compete.errors import CompeteError

SENTENCEPIECE_TYPES = frozenset({"SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"})
"""Names under which Megatron builds one and the same tokenizer."""

HUGGING_FACE_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
"""Files of a Hugging Face folder that decide about ids; the first one there is speaks for vocab.json and the rest."""

# What `build_tokenizer` reads besides the flags of `TokenizerChoice`: the defaults of Megatron's TokenizerConfig.
_OTHER_DEFAULTS: dict[str, Any] = {
    "chat_template": None,
    "force_system_message": False,
    "image_tag_type": "",
    "metadata_path": None,
    "null_tokenizer_eod_id": None,
    "null_tokenizer_pad_id": -1,
    "pad_vocab_size": False,  # padding is the model's business
    "sft_tokenizer_prompt_format": "nemotron-h-aligned",
    "special_tokens": None,
    "tiktoken_num_special_tokens": 1000,
    "tiktoken_pattern": None,
    "tokenizer_hf_no_include_special_tokens": False,
    "tokenizer_hf_no_use_fast": False,
    "tokenizer_prompt_format": None,
    "tokenizer_sentencepiece_ignore_extra_whitespaces": True,
    "tokenizer_sentencepiece_legacy": False,
    "trust_remote_code": False,
}


@dataclass(frozen=True)
class TokenizerChoice:
    """Megatron's tokenizer flags, under Megatron's names."""

    tokenizer_type: str
    """`--tokenizer-type`: anything `megatron.core.tokenizers` builds."""

    tokenizer_model: str | None = None
    """`--tokenizer-model`: a SentencePiece or tiktoken file, a Hugging Face folder or hub name."""

    vocab_size: int | None = None
    """`--vocab-size`: what NullTokenizer and TikTokenizer need to be told; the others know it."""

    vocab_file: str | None = None
    """`--vocab-file`."""

    merge_file: str | None = None
    """`--merge-file`."""

    @property
    def library(self) -> str:
        """One name for the types that Megatron builds alike."""
        return "SentencePiece" if self.tokenizer_type in SENTENCEPIECE_TYPES else self.tokenizer_type

    def arguments(self) -> SimpleNamespace:
        """The namespace that Megatron's `build_tokenizer` wants."""
        return SimpleNamespace(
            tokenizer_type=self.tokenizer_type,
            tokenizer_model=self.tokenizer_model,
            vocab_size=self.vocab_size,
            vocab_file=self.vocab_file,
            merge_file=self.merge_file,
            **_OTHER_DEFAULTS,
        )

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
        if self.library == "SentencePiece":
            if self.tokenizer_model is None:
                raise CompeteError(f"--tokenizer-type {self.tokenizer_type} needs --tokenizer-model FILE.model")
            if not os.path.isfile(self.tokenizer_model):
                raise CompeteError(
                    f"--tokenizer-model {self.tokenizer_model}: no such file; tools/train_tokenizer.py makes one"
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
                f"cannot build the tokenizer {self.describe()}: {error or type(error).__name__}"
            ) from None
        given, own = self.vocab_size, int(tokenizer.vocab_size)
        if given is not None and given != own and not self.tokenizer_type.startswith("Null"):
            raise CompeteError(f"--vocab-size {given}, but {self.describe()} has {own} ids: leave --vocab-size out")
        return tokenizer

    def fingerprint(self) -> str | None:
        """Sha256 over the files that decide about ids; None where there are none (NullTokenizer, a hub name)."""
        files = _deciding_files(self.tokenizer_model) + [file for file in (self.vocab_file, self.merge_file) if file]
        if not files:
            return None
        if len(files) == 1:
            return _sha256(files[0])
        return hashlib.sha256("".join(map(_sha256, files)).encode()).hexdigest()


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
