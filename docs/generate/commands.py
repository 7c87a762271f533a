"""Every verb's flags and the trainer's own, as their parsers have them."""

import argparse
import re
import sys
from typing import Any
from unittest import mock

from generate import table
from megatron_compete.cli.verbs import VERBS, Verb

PRETRAIN = "pretrain"


def commands_page() -> str:
    """All verbs, a section each."""
    rows = [[verb.group, f"[`{verb.name}`](#{verb.name})", verb.summary] for verb in VERBS]
    index = table(["for", "verb", "what it does"], rows)
    intro = "The program is `megatron-compete VERB`, or `python -m megatron_compete VERB`."
    return f"# Commands\n\n{intro}\n\n{index}" + "".join(verb_section(verb) for verb in VERBS)


def verb_section(verb: Verb) -> str:
    """A verb's description, flags by group, and example."""
    parser = verb.load().parser()
    groups = "".join(flags_of(group) for group in parser._action_groups)
    more = "\nFlags of the trainer: [Trainer flags](trainer-flags.md).\n" if verb.name == PRETRAIN else ""
    return f"\n## {verb.name}\n\n{as_text(parser.description)}\n{groups}{more}\n{as_text(parser.epilog)}"


def as_text(text: str | None) -> str:
    """Help text with its line breaks, as a block."""
    return f"```text\n{text.strip()}\n```\n" if text else ""


def flags_of(group: Any, title: bool = False) -> str:
    """A table of a group's flags; nothing for a group without any."""
    rows = [
        flag_row(action)
        for action in group._group_actions
        if action.help != argparse.SUPPRESS and action.dest != "help"
    ]
    if not rows:
        return ""
    return (f"\n## {group.title}\n\n" if title else "") + table(["flag", "values", "default", "meaning"], rows) + "\n"


def flag_row(action: argparse.Action) -> list[str]:
    """Flag, the values that it takes, default, help."""
    names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
    default = "required" if action.required and action.option_strings else shown(action.default)
    values = {**vars(action), "prog": "megatron-compete", "type": getattr(action.type, "__name__", "")}
    text = " ".join(((action.help or "") % values).split())
    if said := re.search(r" ?\(default: ([^()]*)\)$", text):
        text, default = text[: said.start()], default or f"`{said[1]}`"
    return [names, values_of(action), "" if default == "`False`" else default, text]


def values_of(action: argparse.Action) -> str:
    """Choices, or what kind of value is meant; nothing for a switch or an argument without a flag."""
    if action.choices is not None:
        return " ".join(f"`{choice}`" for choice in action.choices)
    if action.nargs == 0 or not action.option_strings:
        return ""
    kind = {"int": "N", "float": "NUMBER", "Path": "PATH"}.get(getattr(action.type, "__name__", ""), "TEXT")
    return f"`{action.metavar or kind}`"


def shown(default: Any) -> str:
    """A default as a cell; nothing for those that say nothing."""
    silent = default is None or default is False or default == argparse.SUPPRESS or default in ([], ())
    return "" if silent else f"`{default}`"


def trainer_flags_page() -> str:
    """The flags that this project adds to Megatron's parser."""
    from megatron_compete.training.arguments import add_arguments

    with mock.patch.object(sys, "argv", [PRETRAIN]):
        parser = add_arguments(argparse.ArgumentParser(prog=PRETRAIN, add_help=False))
    groups = "".join(flags_of(group, title=True) for group in parser._action_groups)
    return f"""# Trainer flags

What this project adds to the arguments of Megatron's trainer. They stand in a recipe's `arguments` section without the
dashes, or on the command line of [`megatron-compete pretrain`](commands.md#pretrain). Megatron's own several hundred
arguments are printed by `megatron-compete pretrain --help` and explained in
[Megatron-LM's documentation](https://docs.nvidia.com/megatron-core/developer-guide/latest/index.html).

{groups}"""
