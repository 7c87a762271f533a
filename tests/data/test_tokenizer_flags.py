"""Megatron's tokenizer flags for the corpus tools."""

import argparse
from dataclasses import fields

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.tokenizer_flags import add_tokenizer_flags, take_tokenizer_choice


def parse(*words: str, required: bool = True) -> TokenizerChoice | None:
    parser = argparse.ArgumentParser()
    add_tokenizer_flags(parser.add_argument_group("tokenizer"), required)
    options = vars(parser.parse_args(words))
    choice = take_tokenizer_choice(options)
    assert options == {}
    return choice


def test_no_flag_is_the_default() -> None:
    assert parse("--tokenizer-type", "NullTokenizer") == TokenizerChoice("NullTokenizer")


def test_values_and_switches() -> None:
    choice = parse(
        *("--tokenizer-type", "TikTokenizer", "--tokenizer-model", "ranks.json", "--vocab-size", "2000"),
        *("--tokenizer-special-tokens", "<unk>", "<s>", "--tiktoken-pattern", "v1"),
        "--tokenizer-hf-no-include-special-tokens",
        "--no-tokenizer-sentencepiece-ignore-extra-whitespaces",
    )
    assert choice == TokenizerChoice(
        "TikTokenizer",
        "ranks.json",
        2000,
        special_tokens=("<unk>", "<s>"),
        tiktoken_pattern="v1",
        tokenizer_hf_no_include_special_tokens=True,
        tokenizer_sentencepiece_ignore_extra_whitespaces=False,
    )


def test_names_are_the_trainers() -> None:
    from megatron.training.arguments import parse_args

    words = "--tokenizer-type SentencePieceTokenizer --tokenizer-special-tokens a b --tiktoken-num-special-tokens 5"
    words += " --no-tokenizer-sentencepiece-ignore-extra-whitespaces --tokenizer-sentencepiece-legacy"
    words += " --null-tokenizer-eod-id 3 --tokenizer-hf-no-use-fast --trust-remote-code --vocab-file v --merge-file m"
    choice = parse(*words.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pretrain", *words.split()])
        args = parse_args(ignore_unknown_args=False)
    assert choice is not None
    for field in fields(TokenizerChoice):
        value = getattr(choice, field.name)
        assert getattr(args, field.name) == (list(value) if isinstance(value, tuple) else value), field.name


def test_optional() -> None:
    assert parse(required=False) is None
    with pytest.raises(CompeteError, match="--merge-file, --tokenizer-model without --tokenizer-type"):
        parse("--tokenizer-model", "a", "--merge-file", "b", required=False)
    with pytest.raises(SystemExit):
        parse()
