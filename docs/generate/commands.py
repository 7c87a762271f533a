"""Every verb's flags and the trainer's own, as their parsers have them."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from generate import table

from megatron_compete.cli import main

PRETRAIN = "pretrain"


class Seen(Exception):
    """A parser was about to parse these words."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser that `megatron-compete VERB` reads its words with, whichever module makes it."""
    real = argparse.ArgumentParser.parse_known_args

    def parse(parser: argparse.ArgumentParser, *arguments: Any, **named: Any) -> Any:
        if parser.prog.split()[-1] == verb:
            raise Seen(parser)
        return real(parser, *arguments, **named)

    with words_are("megatron-compete", verb), replaced(argparse.ArgumentParser, "parse_known_args", parse):
        try:
            main()
        except Seen as seen:
            return seen.parser
    raise LookupError(f"megatron-compete {verb} parses nothing")


def verbs() -> dict[str, str]:
    """{verb: what it is for}, in the order of `megatron-compete --help`."""
    subparsers = next(a for a in parser_of("megatron-compete")._actions if isinstance(a, argparse._SubParsersAction))
    return {choice.dest: choice.help or "" for choice in subparsers._choices_actions}


@contextlib.contextmanager
def words_are(*words: str) -> Iterator[None]:
    """The command line that a `main` sees."""
    with replaced(sys, "argv", list(words)):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute exchanged for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def commands_page() -> str:
    """All verbs, a section each."""
    known = verbs()
    index = table(["verb", "what it does"], [[f"[`{verb}`](#{verb})", text] for verb, text in known.items()])
    return "# Commands\n\nThe program is `megatron-compete VERB`, or `python -m megatron_compete VERB`.\n\n" + index + "".join(
        verb_section(verb, text) for verb, text in known.items()
    )


def verb_section(verb: str, text: str) -> str:
    """A verb's description and its flags, by group."""
    parser = parser_of(verb)
    description = "\n".join(f"    {line}" for line in (parser.description or text).strip().splitlines())
    groups = "".join(flags_of(group) for group in parser._action_groups)
    more = "\nFlags of the trainer: [Trainer flags](trainer-flags.md).\n" if verb == PRETRAIN else ""
    return f"\n## {verb}\n\n```text\n{description}\n```\n\n{groups}{more}"


def flags_of(group: Any, title: bool = False) -> str:
    """A table of a group's flags; nothing for a group without any."""
    rows = [flag_row(action, group) for action in group._group_actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    if not rows:
        return ""
    return (f"\n## {group.title}\n\n" if title else "") + table(["flag", "default", "meaning"], rows) + "\n"


def flag_row(action: argparse.Action, group: Any) -> list[str]:
    """Flag with its values, default, help."""
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    if action.choices is not None and action.option_strings:
        names += " " + ", ".join(f"`{choice}`" for choice in action.choices)
    elif action.nargs != 0 and action.option_strings:
        names += f" `{action.metavar or action.dest.upper()}`"
    default = "required" if action.required and action.option_strings else shown(action.default)
    values = {**vars(action), "prog": "megatron-compete", "type": getattr(action.type, "__name__", "")}
    return [names, default, " ".join(((action.help or "") % values).split())]


def shown(default: Any) -> str:
    """A default as a cell; nothing for those that say nothing."""
    return "" if default in (None, False, argparse.SUPPRESS, [], ()) else f"`{default}`"


def trainer_flags_page() -> str:
    """The flags that this project adds to Megatron's parser."""
    from megatron_compete.training.arguments import add_arguments

    with words_are("pretrain"):
        parser = add_arguments(argparse.ArgumentParser(prog=PRETRAIN, add_help=False))
    groups = "".join(flags_of(group, title=True) for group in parser._action_groups)
    return f"""# Trainer flags

What this project adds to the arguments of Megatron's trainer. They stand in a recipe's `arguments` section without the
dashes, or on the command line of [`megatron-compete pretrain`](commands.md#pretrain). Megatron's own several hundred
arguments are printed by `megatron-compete pretrain --help` and explained in
[Megatron-LM's documentation](https://docs.nvidia.com/megatron-core/developer-guide/latest/index.html).

{groups}"""
