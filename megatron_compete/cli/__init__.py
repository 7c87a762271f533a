"""`megatron-compete VERB`: the one command, which binds the commands of the rooms below."""

import os
import sys
from collections.abc import Sequence

from megatron_compete import __version__
from megatron_compete.cli.verbs import GROUPS, VERBS, find_verb
from megatron_compete.common.command_line import PROGRAM
from megatron_compete.common.errors import USAGE_EXIT_CODE, run_command


def main(verb: str | None = None) -> None:
    """Entry point of the command; with a verb, of a script that stands for it."""
    if "_ARGCOMPLETE" in os.environ:
        from megatron_compete.cli.completion import complete

        complete()
    words = sys.argv[1:] if verb is None else [verb, *sys.argv[1:]]
    run_command(lambda: dispatch(words))


def dispatch(words: Sequence[str]) -> None:
    """Do what a command line without the program's name says.

    Raises:
        CompeteError: no such verb, or what the verb says.
    """
    if not words:
        print(overview(), file=sys.stderr)
        raise SystemExit(USAGE_EXIT_CODE)
    if words[0] in ("-h", "--help"):
        print(overview())
    elif words[0] == "--version":
        print(f"{PROGRAM} {__version__}")
    else:
        find_verb(words[0]).load()(words[1:])


def overview() -> str:
    """The verbs by group."""
    width = max(len(verb.name) for verb in VERBS)
    lines = [
        f"usage: {PROGRAM} VERB ...",
        "",
        "Competition routing for mixture-of-experts pretraining on Megatron-Core.",
    ]
    for group in GROUPS:
        lines += ["", group]
        lines += [f"  {verb.name:<{width}}  {verb.summary}" for verb in VERBS if verb.group == group]
    lines += [
        "",
        f"{PROGRAM} VERB --help shows a verb's flags and an example, {PROGRAM} --version the version.",
        "Exit codes: 0 done, 1 something is damaged or does not work, 2 bad input, 75 told to stop and to be continued.",
    ]
    return "\n".join(lines)
