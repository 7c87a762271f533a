"""The trainer's `--help`."""

import argparse
import re


def escape_help(parser: argparse.ArgumentParser) -> None:
    """Escape percent signs in help texts of Megatron's; with one that is not (0.19.2 has it), `--help` is a traceback."""
    for action in parser._actions:
        if action.help is not None:
            action.help = re.sub(r"%%|%(?!\()", "%%", action.help)


def describe_arguments() -> str:
    """Megatron's arguments and ours, as `--help` shows them."""
    from megatron.training.arguments import add_megatron_arguments

    from megatron_compete.training.arguments import add_arguments

    parser = argparse.ArgumentParser(prog="", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    return add_arguments(add_megatron_arguments(parser)).format_help()
