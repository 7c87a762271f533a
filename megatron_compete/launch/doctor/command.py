"""`megatron-compete doctor`."""

import argparse
import sys
from pathlib import Path

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.doctor.finding import CAPABILITIES, failing

PROBLEM_EXIT_CODE = 1

DEFAULT_TIMEOUT_SECONDS = 180.0
"""Importing Megatron from a cold network file system takes minutes."""

HELP = """What this environment can do, and what to do about the rest. Packages are imported in processes of their own,
so that a broken one is a line of the report. Exit code 0: everything required works; 1: it does not."""


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    listed = "; ".join(f"{name}: {meaning}" for name, meaning in CAPABILITIES.items())
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument(
        "--require",
        default="training",
        metavar="WHAT[,WHAT...]",
        help=f"what must work for exit code 0 (default: training). {listed}",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"longest that a package's import may take (default: {DEFAULT_TIMEOUT_SECONDS:g})",
    )
    parser.add_argument(
        "--nodes",
        action="store_true",
        help="inside a Slurm job: run on every node of the allocation and show in what the nodes differ",
    )


def run_doctor(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Report on this environment, or with `--nodes` on all of the allocation.

    Raises:
        CompeteError: an unknown argument or capability, or `--nodes` outside an allocation.
        SystemExit: with code 1 where something required does not work.
    """
    from megatron_compete.launch.doctor.examine import examine
    from megatron_compete.launch.doctor.nodes import compare_nodes, print_differences
    from megatron_compete.launch.doctor.report import print_json, print_report, report_document

    if rest:
        raise CompeteError(f"doctor takes no argument {rest[0]}: see megatron-compete doctor --help")
    required = _required(arguments.require)
    if arguments.timeout <= 0:
        raise CompeteError(f"--timeout {arguments.timeout:g} is out of range: give seconds above 0")
    if arguments.nodes:
        nodes = compare_nodes(arguments.require, arguments.timeout)
        if arguments.json:
            print_json({"format": 1, "nodes": nodes}, sys.stdout)
        else:
            print_differences(nodes, sys.stdout)
        fit = all(node["works"] for node in nodes.values())
    else:
        findings = list(examine(Path.cwd(), arguments.timeout))
        if arguments.json:
            print_json(report_document(findings, required), sys.stdout)
        else:
            print_report(findings, required, sys.stdout)
        fit = not failing(findings, required)
    sys.stdout.flush()
    if not fit:
        raise SystemExit(PROBLEM_EXIT_CODE)


def _required(text: str) -> set[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in CAPABILITIES]
    if unknown or not names:
        raise CompeteError(f"--require {text}: choose from {', '.join(CAPABILITIES)}")
    return set(names)
