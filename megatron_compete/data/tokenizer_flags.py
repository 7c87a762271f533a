"""Megatron's tokenizer flags for the corpus tools, under Megatron's names and with its defaults."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

from megatron_compete.common.command_line import add_options, flag_of, take_options
from megatron_compete.common.errors import CompeteError
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

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
    """Add the flags that decide about ids; `take_tokenizer_choice` reads them."""
    add_options(group, TokenizerChoice, required=required)
    add_refused_flags(group, _REFUSED)


def take_tokenizer_choice(options: dict[str, Any]) -> TokenizerChoice | None:
    """Take what `add_tokenizer_flags` added out of a parsed namespace; None where none of the flags was given.

    Raises:
        CompeteError: some were, but not --tokenizer-type.
    """
    given = {field.name for field in fields(TokenizerChoice)} & options.keys()
    if given and "tokenizer_type" not in given:
        flags = ", ".join(sorted(flag_of(TokenizerChoice, name) for name in given))
        raise CompeteError(f"{flags} without --tokenizer-type: name the type, SentencePieceTokenizer for example")
    return take_options(TokenizerChoice, options) if given else None
