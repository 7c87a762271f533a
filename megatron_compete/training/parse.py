"""A rank's arguments: parsed, checked by our rules, validated by Megatron and made its global ones."""

import argparse
import contextlib
import traceback
from collections.abc import Iterator

from megatron.training.arguments import parse_and_validate_args, parse_args

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.layout.rules import BrokenRules, broken_rules
from megatron_compete.training.arguments import add_arguments, check_arguments, check_installed


def parse_arguments() -> argparse.Namespace:
    """Parse and validate `sys.argv`, and make the result Megatron's global arguments.

    Raises:
        CompeteError: in one line, for what Megatron would trip over later or with a traceback.
    """
    args = parse_args(add_arguments)
    if not (args.use_checkpoint_args or args.yaml_cfg):  # those complete the arguments only when they are validated
        broken = broken_rules(args, gpus_per_node=args.world_size)
        if broken:
            raise BrokenRules(broken)
    check_arguments(args)
    if not cpu.is_needed():
        check_installed(args)
    with megatrons_words():
        return parse_and_validate_args(add_arguments)


@contextlib.contextmanager
def megatrons_words() -> Iterator[None]:
    """Megatron's assertions about arguments, in one line."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        if isinstance(error, CompeteError):
            raise
        said = str(error) or traceback.extract_tb(error.__traceback__)[-1].line  # some of its assertions say nothing
        raise CompeteError(f"Megatron refuses these arguments: {said}") from error
