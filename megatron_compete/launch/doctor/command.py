"""`megatron-compete doctor`."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_compete.common.command_line import Command, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.doctor.finding import CAPABILITIES, failing

PROBLEM_EXIT_CODE = 1

DEFAULT_TIMEOUT_SECONDS = 180.0
"""Importing Megatron from a cold network file system takes minutes."""

_MEANINGS = "; ".join(f"{name}: {meaning}" for name, meaning in CAPABILITIES.items())


@dataclass(frozen=True)
class DoctorOptions:
    """The verb's flags."""

    json: bool = option(False, help="one JSON object instead of the table")
    require: str = option(
        "training",
        metavar="WHAT[,WHAT...]",
        help=f"what must work for exit code 0 (default: training). {_MEANINGS}",
    )
    timeout: float = option(DEFAULT_TIMEOUT_SECONDS, metavar="SECONDS", help="longest that a package's import may take")
    recipe: Path | None = option(
        None, metavar="RECIPE", help="instead: what a recipe asks for and what is known of it, as plan --features shows"
    )
    nodes: bool = option(
        False, help="inside a Slurm job: run on every node of the allocation and show in what the nodes differ"
    )


def run_doctor(options: DoctorOptions) -> None:
    """Report on this environment, or with `--nodes` on all of the allocation.

    Raises:
        CompeteError: an unknown capability, or `--nodes` outside an allocation.
        SystemExit: with code 1 where something required does not work.
    """
    if options.recipe is not None:
        raise SystemExit(_show_recipe(options.recipe, options.json))
    from megatron_compete.launch.doctor.examine import examine
    from megatron_compete.launch.doctor.nodes import compare_nodes, print_differences
    from megatron_compete.launch.doctor.report import print_json, print_report, report_document

    required = _required(options.require)
    if options.timeout <= 0:
        raise CompeteError(f"--timeout {options.timeout:g} is out of range: give seconds above 0")
    if options.nodes:
        nodes = compare_nodes(options.require, options.timeout)
        if options.json:
            print_json({"format": 1, "nodes": nodes}, sys.stdout)
        else:
            print_differences(nodes, sys.stdout)
        fit = all(node["works"] for node in nodes.values())
    else:
        findings = list(examine(Path.cwd(), options.timeout))
        if options.json:
            print_json(report_document(findings, required), sys.stdout)
        else:
            print_report(findings, required, sys.stdout)
        fit = not failing(findings, required)
    sys.stdout.flush()
    if not fit:
        raise SystemExit(PROBLEM_EXIT_CODE)


def _show_recipe(recipe: Path, as_json: bool) -> int:
    """The planner's answer, from a process of its own like everything that imports Megatron here; returns its exit code."""
    command = [sys.executable, "-m", "megatron_compete", "plan", "--recipe", str(recipe), "--features"]
    return subprocess.run([*command, *(["--json"] if as_json else [])]).returncode


def _required(text: str) -> set[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in CAPABILITIES]
    if unknown or not names:
        raise CompeteError(f"--require {text}: choose from {', '.join(CAPABILITIES)}")
    return set(names)


main = Command(
    name="doctor",
    description="""What this environment can do, and what to do about the rest. Packages are imported in processes of their
    own, so that a broken one is a line of the report. Exit code 0: everything required works; 1: it does not.""",
    example="--require training,export",
    options=DoctorOptions,
    run=run_doctor,
)
