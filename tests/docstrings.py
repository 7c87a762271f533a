"""Megatron reads the source of 15 dataclasses for the help of its arguments, each time that it builds its parser.

That is half of what a run of a few steps costs, and tests build hundreds of parsers.
"""

import argparse
import functools

from megatron.training.argument_utils import ArgumentGroupFactory
from megatron.training.arguments import add_megatron_arguments


def read_once() -> None:
    """Read them now, and let this process and those forked from it remember."""
    read = functools.partial(ArgumentGroupFactory._get_field_docstrings, ArgumentGroupFactory)
    ArgumentGroupFactory._get_field_docstrings = staticmethod(functools.cache(read))
    add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
