#!/usr/bin/env python3
"""What a competing step costs, by responses and by utility, beside a normal one and beside the naive way to compete.

    python benchmarks/competition_step.py                               # the default table, on gloo ranks of its own
    python benchmarks/competition_step.py --experts 32 --topk 4 --ep 2  # one shape
    torchrun --nproc-per-node 8 benchmarks/competition_step.py --ep 8   # on GPUs, one rank each
    python benchmarks/competition_step.py --suite models --grouped-gemm # layers of known models, on one GPU
    python benchmarks/competition_step.py --suite sample --fraction 0.03 # a sample of the tokens competes

Measured in one run, the kinds of step taking turns: time, bytes sent and peak memory of the forward and backward pass of
one MoE layer. Before that both kinds of competing step are compared with their naive forms in fp32.
"""

import argparse
import os
import sys
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import ACTIVATIONS, SUITES, Case
from benchmarks.ranks import (
    DTYPES,
    Settings,
    be_the_only_rank,
    measure_here,
    measure_on_cpu,
    under_torchrun,
)
from benchmarks.summary import print_table, write_json
from megatron_compete.common.errors import CompeteError, run_command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for field in fields(Case):
        kind: dict[str, Any] = {"choices": ACTIVATIONS} if field.name == "activation" else {"type": int}
        parser.add_argument(f"--{field.name}", help=f"measure one shape; the others as in {Case()!r}", **kind)
    parser.add_argument("--suite", choices=SUITES, default="default", help="which table, where no shape is given")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the tokens that compete (default 1)")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds (default 5)")
    parser.add_argument("--dtype", choices=DTYPES, help="default: fp32 on a CPU, bf16 on GPUs")
    parser.add_argument("--grouped-gemm", action="store_true", help="Transformer Engine's grouped experts (GPUs)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args()


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The shape that flags describe, or the default table.

    Raises:
        CompeteError: a shape that no layer can have.
    """
    given = {f.name: getattr(arguments, f.name) for f in fields(Case) if getattr(arguments, f.name) is not None}
    if not 0.0 < arguments.fraction <= 1.0:
        raise CompeteError(f"--fraction {arguments.fraction} of the tokens: give more than 0, and 1 at most")
    case = Case(**given)
    if min(value for value in vars(case).values() if isinstance(value, int)) < 1 or arguments.repeats < 1:
        raise CompeteError("sizes and --repeats must be 1 or more")
    if case.topk > case.experts:
        raise CompeteError(f"--topk {case.topk} is more than --experts {case.experts}: lower it")
    if case.experts % case.ep:
        raise CompeteError(f"--experts {case.experts} do not divide over --ep {case.ep}: change one")
    return [case] if given else list(SUITES[arguments.suite])


def measure(cases: list[Case], settings: Settings) -> list[dict[str, Any]]:
    """Results of all cases that can run on what is there; the rest is named."""
    if not torch.cuda.is_available() and not under_torchrun():
        groups = [list(group) for _, group in groupby(sorted(cases, key=lambda case: -case.ep), lambda case: case.ep)]
        return [result for group in groups for result in measure_on_cpu(group, settings)]
    if not under_torchrun():
        be_the_only_rank()
    world = int(os.environ["WORLD_SIZE"])
    fitting = [case for case in cases if case.ep == world]
    for ep in sorted({case.ep for case in cases} - {world}):
        _say(f"left out: EP={ep} needs torchrun --nproc-per-node {ep}")
    if not fitting:
        raise CompeteError(f"no shape with --ep {world}, the number of ranks: give --ep {world}")
    return measure_here(fitting, settings)


def _say(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def main() -> None:
    arguments = parse_arguments()
    dtype = arguments.dtype or ("bf16" if torch.cuda.is_available() else "fp32")
    settings = Settings(repeats=arguments.repeats, dtype=dtype, grouped_gemm=arguments.grouped_gemm, fraction=arguments.fraction)  # fmt: skip
    results = measure(chosen_cases(arguments), settings)
    if os.environ.get("RANK", "0") == "0":
        print_table(results, settings)
        if arguments.json:
            write_json(arguments.json, results, settings)


if __name__ == "__main__":
    run_command(main)
