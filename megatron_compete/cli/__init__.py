"""`megatron-compete <verb>`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from megatron_compete import __version__
from megatron_compete.cluster.status_report import HELP as STATUS_HELP
from megatron_compete.cluster.status_report import add_status_arguments, run_status
from megatron_compete.cluster.submit import HELP as SUBMIT_HELP
from megatron_compete.cluster.submit import add_submit_arguments, run_submit
from megatron_compete.common.errors import run_command
from megatron_compete.launch.doctor.command import HELP as DOCTOR_HELP
from megatron_compete.launch.doctor.command import add_doctor_arguments, run_doctor
from megatron_compete.launch.recipe import LAUNCH_OPTIONS, read_recipe, shell_line
from megatron_compete.plan.command import HELP as PLAN_HELP
from megatron_compete.plan.command import add_plan_arguments, run_plan

PRETRAIN_HELP = """Train from a recipe: its arguments are expanded into a torchrun command line.
Anything after the recipe overrides it by name, e.g. --train-iters 100 --nproc-per-node 8 --swiglu=false.
With --launcher srun or mpirun this process is one rank, as in `srun -n 16 megatron-compete pretrain --launcher srun ...`.
DRY_RUN=1 prints the command instead of running it. Exit codes: 0 finished, 2 bad input, 75 told to stop (SIGTERM) and
to be continued by the same command, others failed."""


def pretrain(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """`megatron-compete pretrain --recipe FILE [overrides]`."""
    from megatron_compete.launch.launchers import environment_defaults, run_torchrun
    from megatron_compete.launch.stop_signal import leave_on_stop_signal

    leave_on_stop_signal()
    recipe = read_recipe(arguments.recipe)
    recipe.override(overrides)
    if arguments.launcher != "torchrun":
        _be_rank(arguments.launcher, recipe.command())
        return
    environment = environment_defaults()
    if os.environ.get("DRY_RUN") == "1":
        print(shell_line(recipe.command(), environment))
        return
    os.environ.update(environment)
    run_torchrun(recipe.command())


def _be_rank(launcher: str, command: list[str]) -> None:
    from megatron_compete.launch.launchers import become_rank, rank_line

    if os.environ.get("DRY_RUN") == "1":
        print(rank_line(launcher, command))
        return
    become_rank(command)
    from megatron_compete.training import pretrain  # Megatron: what is set above holds only before its import

    pretrain.main(launcher)


class PretrainHelp(argparse.Action):
    """`pretrain --help`: the verb's own flags, torchrun's options, and all arguments of the trainer."""

    def __init__(self, option_strings: Sequence[str], dest: str, **keywords: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="show this, and all arguments of a recipe", **keywords)

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


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, Callable[[argparse.Namespace, list[str]], None]]]:
    """The parser, and the function of each verb."""
    parser = argparse.ArgumentParser(prog="megatron-compete", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="verb")
    train = verbs.add_parser("pretrain", help="train from a recipe", description=PRETRAIN_HELP, allow_abbrev=False, add_help=False)  # fmt: skip
    train.add_argument("-h", "--help", action=PretrainHelp, default=argparse.SUPPRESS)
    train.add_argument("--recipe", type=Path, required=True, help="YAML file, see examples/")
    train.add_argument("--launcher", choices=("torchrun", "srun", "mpirun"), default="torchrun",
                       help="torchrun: start the ranks; srun, mpirun: be the rank that these have started")  # fmt: skip
    plan = verbs.add_parser("plan", help="price a recipe without a GPU", description=PLAN_HELP, allow_abbrev=False)
    add_plan_arguments(plan)
    job = verbs.add_parser("submit", help="write a run folder and submit it to Slurm", description=SUBMIT_HELP, allow_abbrev=False)  # fmt: skip
    add_submit_arguments(job)
    status = verbs.add_parser("status", help="how runs are getting on", description=STATUS_HELP, allow_abbrev=False)
    add_status_arguments(status)
    doctor = verbs.add_parser(
        "doctor", help="what this environment can do", description=DOCTOR_HELP, allow_abbrev=False
    )
    add_doctor_arguments(doctor)
    return parser, {
        "pretrain": pretrain,
        "plan": run_plan,
        "submit": run_submit,
        "status": run_status,
        "doctor": run_doctor,
    }


def main() -> None:
    """Entry point of the `megatron-compete` command."""

    def run() -> None:
        parser, verbs = build_parser()
        arguments, rest = parser.parse_known_args(sys.argv[1:])
        verbs[arguments.verb](arguments, rest)

    run_command(run)
