"""Data and tokenizer, checked before training starts."""

import argparse

from megatron.training import get_tokenizer
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_compete.data.match import check_tokenizer_matches
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.errors import CompeteError


def data_prefixes(args: argparse.Namespace) -> list[str]:
    """The dataset prefixes that Megatron's data arguments name, without weights."""
    blend, per_split = get_blend_and_blend_per_split(args)
    blends = [blend] if blend is not None else list(per_split or [])
    return [prefix for one in blends if one is not None for prefix in one[0]]


def check_data(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for a missing dataset, or one that another tokenizer made."""
    if args.mock_data:
        return
    prefixes = data_prefixes(args)
    if not prefixes:
        raise CompeteError("no training data: give --data-path PREFIX (of the .bin/.idx pair), or --mock-data")
    for prefix in prefixes:
        check_tokenizer_matches(
            prefix,
            tokenizer_type=args.tokenizer_type,
            tokenizer_model=args.tokenizer_model,
            vocab_size=get_tokenizer().vocab_size,
            tokenizer_options=TokenizerChoice.from_arguments(args).options,
        )
