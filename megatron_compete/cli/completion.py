"""`megatron-compete completion SHELL`: completion of verbs, flags, choices and files by argcomplete."""

import argparse
import os
from dataclasses import MISSING, dataclass
from typing import Literal

from megatron_compete.cli.verbs import VERBS
from megatron_compete.common.command_line import PROGRAM, Command, option


@dataclass(frozen=True)
class Completion:
    """What to print."""

    shell: Literal["bash", "zsh", "fish"] = option(MISSING, "shell", help="whose script")


def complete() -> None:
    """Answer a shell that asks what comes next, and leave."""
    import argcomplete

    words = os.environ.get("COMP_LINE", "").split()
    argcomplete.autocomplete(parser_of(words[1] if len(words) > 1 else None))


def parser_of(chosen: str | None) -> argparse.ArgumentParser:
    """All verbs, the flags of the chosen one among them: importing the others would keep the shell waiting."""
    parser = argparse.ArgumentParser(PROGRAM)
    parser.add_argument("--version", action="store_true")
    verbs = parser.add_subparsers()
    for verb in VERBS:
        own = verbs.add_parser(verb.name, help=verb.summary, add_help=False)
        if verb.name == chosen:
            verb.load().fill(own)
    return parser


def print_script(options: Completion) -> None:
    """The script for a shell."""
    import argcomplete

    print(argcomplete.shellcode([PROGRAM], shell=options.shell))


main = Command(
    name="completion",
    description="Print a script that makes a shell complete verbs, flags, choices and files.",
    epilog="""
    Where it goes:

        bash  ~/.bashrc     eval "$(megatron-compete completion bash)"
        zsh   ~/.zshrc      eval "$(megatron-compete completion zsh)"
        fish  once          megatron-compete completion fish > ~/.config/fish/completions/megatron-compete.fish""",
    example="bash",
    options=Completion,
    run=print_script,
)
