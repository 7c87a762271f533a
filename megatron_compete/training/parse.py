"""A rank's arguments: parsed, checked by our rules, validated by Megatron and made its global ones."""

import argparse

from megatron.training.arguments import parse_and_validate_args, parse_args

from megatron_compete.data.megatron_tokenizer import check_named
from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.training.arguments import add_arguments, check_installed
from megatron_compete.training.job_check import check_job


def parse_arguments() -> argparse.Namespace:
    """Parse and validate `sys.argv`, and make the result Megatron's global arguments.

    Raises:
        CompeteError: in one line, for what Megatron would trip over later or with a traceback.
    """
    args = parse_args(add_arguments)
    return check_job(args, gpus_per_node=args.world_size, validate=_made_global).args


def _made_global(args: argparse.Namespace) -> argparse.Namespace:
    """Megatron's validation of this rank; it parses once more by itself, and builds the tokenizer."""
    if not args.use_checkpoint_args:
        check_named(args.tokenizer_type, args.tokenizer_model)
    if not cpu.is_needed():
        check_installed(args)
    return parse_and_validate_args(add_arguments)
