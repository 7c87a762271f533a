"""`megatron-compete pretrain`: a recipe as a torchrun command line, or as one rank of a launcher's."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from megatron_compete.common.command_line import Command, option
from megatron_compete.launch.environment import Launcher
from megatron_compete.launch.recipe import LAUNCH_OPTIONS, Recipe, read_recipe, shell_line


@dataclass(frozen=True)
class Pretrain:
    """The verb's own flags."""

    recipe: Path = option(metavar="RECIPE", help="YAML file, see examples/")
    launcher: Launcher = option(
        "torchrun", help="torchrun: start the ranks; srun, mpirun: be the rank that these have started"
    )
    overrides: tuple[str, ...] = option((), hidden=True)


def pretrain(options: Pretrain) -> None:
    """Train, or under DRY_RUN=1 check and print how."""
    from megatron_compete.launch.launchers import environment_defaults, run_torchrun
    from megatron_compete.launch.stop_signal import leave_on_stop_signal

    leave_on_stop_signal()
    recipe = read_recipe(options.recipe)
    recipe.override(options.overrides)
    if options.launcher != "torchrun":
        _be_rank(options.launcher, recipe)
        return
    environment = environment_defaults()
    if os.environ.get("DRY_RUN") == "1":
        _check(recipe, ranks=None)
        print(shell_line(recipe.command(), environment))
        return
    os.environ.update(environment)
    run_torchrun(recipe.command())


def _be_rank(launcher: str, recipe: Recipe) -> None:
    from megatron_compete.launch.launchers import become_rank, rank_line

    command = recipe.command()
    if os.environ.get("DRY_RUN") == "1":
        tasks = os.environ.get("SLURM_NTASKS", "") if launcher == "srun" else ""
        _check(recipe, ranks=int(tasks) if tasks.isdecimal() else None)
        print(rank_line(launcher, command))
        return
    become_rank(command)
    from megatron_compete.training import pretrain  # Megatron: what is set above holds only before its import

    pretrain.main(launcher)


def _check(recipe: Recipe, ranks: int | None) -> None:
    """What the trainer checks before it builds a model, as for a host with GPUs: a dry run is often made on another.

    Args:
        ranks: None: those of the recipe, at torchrun's defaults.
    Raises:
        CompeteError: the job would be refused.
    """
    from megatron_compete.launch.launchers import silence_cpu_warnings

    silence_cpu_warnings()
    try:
        from megatron_compete.plan.recipe_check import check_recipe, not_checked
    except ImportError as error:
        print(f"note: not checked whether it would train: {error}", file=sys.stderr)
        return
    reason = not_checked(recipe)
    sizes = [str(recipe.launch.get(name, 1)) for name in ("nnodes", "nproc-per-node")]
    if reason is None and ranks is None and not all(size.isdecimal() for size in sizes):
        reason = f"--nnodes {sizes[0]} --nproc-per-node {sizes[1]} leave the number of ranks open"
    if reason is not None:
        print(f"note: not checked whether it would train: {reason}", file=sys.stderr)
        return
    check_recipe(recipe, int(sizes[0]) * int(sizes[1]) if ranks is None else ranks)


class PretrainHelp(argparse.Action):
    """`pretrain --help`: the verb's own flags, torchrun's options, and all arguments of the trainer."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **more | {"help": "show this, and all arguments of a recipe"})

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(parser.format_help())
        print(f"options of torchrun, for a recipe's launch section or as flags:\n  {', '.join(LAUNCH_OPTIONS)}\n")
        try:
            from megatron_compete.launch.launchers import silence_cpu_warnings

            silence_cpu_warnings()
            from megatron_compete.training.argument_help import describe_arguments
        except ImportError as error:
            print(f"arguments of the trainer, for a recipe's arguments section or as flags: not here ({error})")
        else:
            print("arguments of the trainer, for a recipe's arguments section or as flags:\n")
            print(describe_arguments())
        raise SystemExit(0)


main = Command(
    name="pretrain",
    description="""Train from a recipe: its arguments are expanded into a torchrun command line.
    Anything after the recipe overrides it by name, e.g. --train-iters 100 --nproc-per-node 8 --swiglu=false.
    With --launcher srun or mpirun this process is one rank, as in `srun -n 16 megatron-compete pretrain --launcher srun
    ...`. DRY_RUN=1 checks the job as the trainer would and prints the command
    instead of running it.

    Exit codes: 0 finished, 2 bad input, 75 told to stop (SIGTERM) and to be continued by the same command, others
    failed.""",
    example="--recipe examples/demo.yaml --data-path data/train_text_document --train-iters 100",
    options=Pretrain,
    run=pretrain,
    takes_overrides=True,
    help_action=PretrainHelp,
)
