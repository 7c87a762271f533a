"""`megatron-compete <verb>`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_compete import __version__
from megatron_compete.errors import run_command
from megatron_compete.plan.command import HELP as PLAN_HELP
from megatron_compete.plan.command import add_plan_arguments, run_plan
from megatron_compete.recipe import read_recipe, shell_line

PRETRAIN_HELP = """Train from a recipe: its arguments are expanded into a torchrun command line.
Anything after the recipe overrides it by name, e.g. --train-iters 100 --nproc-per-node 8 --swiglu=false.
DRY_RUN=1 prints the command instead of running it."""


def pretrain(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """`megatron-compete pretrain --recipe FILE [overrides]`."""
    from megatron_compete.runtime.launch import environment_defaults, run_torchrun

    recipe = read_recipe(arguments.recipe)
    recipe.override(overrides)
    environment = environment_defaults()
    if os.environ.get("DRY_RUN") == "1":
        print(shell_line(recipe.command(), environment))
        return
    os.environ.update(environment)
    run_torchrun(recipe.command())


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, Callable[[argparse.Namespace, list[str]], None]]]:
    """The parser, and the function of each verb."""
    parser = argparse.ArgumentParser(prog="megatron-compete", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    train = verbs.add_parser("pretrain", help="train from a recipe", description=PRETRAIN_HELP, allow_abbrev=False)
    train.add_argument("--recipe", type=Path, required=True, help="YAML file, see examples/")
    plan = verbs.add_parser("plan", help="price a recipe without a GPU", description=PLAN_HELP, allow_abbrev=False)
    add_plan_arguments(plan)
    return parser, {"pretrain": pretrain, "plan": run_plan}


def main() -> None:
    """Entry point of the `megatron-compete` command."""
    parser, verbs = build_parser()
    arguments, rest = parser.parse_known_args(sys.argv[1:])
    run_command(lambda: verbs[arguments.verb](arguments, rest))


if __name__ == "__main__":
    main()
