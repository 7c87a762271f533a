"""Megatron's tokenizer flags for the corpus tools, under Megatron's names and with its defaults."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

_TYPE_HELP = (
    "SentencePieceTokenizer, HuggingFaceTokenizer, GPT2BPETokenizer, TikTokenizer, NullTokenizer, or any other that "
    "Megatron builds"
)


_REFUSED = {
    "--padded-vocab-size": "padding is the model's: give it to the trainer",
    "--no-pad-vocab-size": "padding is the model's: give it to the trainer",
    "--disable-pad-vocab-size": "padding is the model's: give it to the trainer",
    "--vocab-extra-ids": "it is for T5: leave it out",
    "--tokenizer-metadata": "the type says which library it is: leave it out",
    "--null-tokenizer-pad-id": "documents are not padded: give it to the trainer",
    "--chat-template": "documents are plain text: apply the template before, or leave it out",
}
"""Flags of Megatron's tokenizers that have nothing to do with the ids of a text, and why they are refused."""


class _Refused(argparse.Action):
    """A flag that ends the command with the reason why."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        raise CompeteError(f"{option_string} is not for this tool: {self.help}")


def add_refused_flags(group: argparse._ArgumentGroup, reasons: Mapping[str, str]) -> None:
    """Flags that Megatron knows and a tool does not, each with the reason and a way out."""
    for name, reason in reasons.items():
        group.add_argument(name, action=_Refused, nargs="*", default=argparse.SUPPRESS, help=reason, metavar="")


def add_tokenizer_flags(group: argparse._ArgumentGroup, required: bool = True) -> None:
    """Add the flags that decide about ids; `take_tokenizer_choice` reads them.

    A flag that is not given leaves no trace in the namespace, so that the defaults are `TokenizerChoice`'s alone.
    """
    none = argparse.SUPPRESS

    def flag(*names: str, **settings: Any) -> None:
        group.add_argument(*names, default=none, **settings)

    def switch(name: str, text: str) -> None:
        flag(name, action="store_true", help=text)

    flag("--tokenizer-type", required=required, metavar="TYPE", help=_TYPE_HELP)
    flag("--tokenizer-model", metavar="PATH", help="SentencePiece or tiktoken file, Hugging Face folder or hub name")
    flag("--vocab-size", type=int, metavar="N", help="for NullTokenizer and TikTokenizer; the others know it")
    flag("--vocab-file", metavar="FILE", help="of GPT2BPETokenizer and Bert's")
    flag("--merge-file", metavar="FILE", help="of GPT2BPETokenizer")
    flag("--tokenizer-special-tokens", dest="special_tokens", nargs="+", metavar="TOKEN", help="as Megatron takes them")
    flag("--tiktoken-pattern", choices=["v1", "v2"], help="how TikTokenizer splits text into words (Megatron's: v2)")
    flag("--tiktoken-num-special-tokens", type=int, metavar="N", help="ids TikTokenizer reserves in front (1000)")
    switch("--tokenizer-hf-no-include-special-tokens", "no <s> or [CLS] around documents of a Hugging Face tokenizer")
    switch("--tokenizer-hf-no-use-fast", "the Hugging Face tokenizer in Python")
    switch("--tokenizer-sentencepiece-legacy", "special tokens on top of a SentencePiece model")
    flag(
        "--no-tokenizer-sentencepiece-ignore-extra-whitespaces",
        "--disable-tokenizer-sentencepiece-ignore-extra-whitespaces",
        dest="tokenizer_sentencepiece_ignore_extra_whitespaces",
        action="store_false",
        help="keep runs of spaces with a model that was trained to drop them",
    )
    switch("--trust-remote-code", "let a Hugging Face tokenizer run code of its own")
    flag("--null-tokenizer-eod-id", type=int, metavar="ID", help="end of document of NullTokenizer")
    add_refused_flags(group, _REFUSED)


def take_tokenizer_choice(options: dict[str, Any]) -> TokenizerChoice | None:
    """Take what `add_tokenizer_flags` added out of a parsed namespace; None where none of the flags was given.

    Raises:
        CompeteError: some were, but not --tokenizer-type.
    """
    names = {field.name for field in fields(TokenizerChoice)} & options.keys()
    taken = {name: options.pop(name) for name in names}
    if "special_tokens" in taken:
        taken["special_tokens"] = tuple(taken["special_tokens"])
    if taken and "tokenizer_type" not in taken:
        flags = ", ".join("--" + name.replace("_", "-") for name in sorted(taken))
        raise CompeteError(f"{flags} without --tokenizer-type: name the type, SentencePieceTokenizer for example")
    return TokenizerChoice(**taken) if taken else None
