#!/usr/bin/env python3
"""Is routing by response easier to learn than a softmax router? The exponents behind CompeteSMoE's theorem, by numbers.

    python examples/studies/theorem.py --out runs/theorem --jobs 2     # minutes; the same again goes on after a kill
    python examples/studies/theorem.py --out runs/theorem --only 'linear/*/intercept/truth-0'
    python examples/studies/theorem.py --out benchmarks/studies/theorem --report-only

`theorem_profile.py` beside it says what is computed; docs/results/theorem.md what came out. DIR/distances.jsonl gets a line
for each profile that is finished; tables, figure and report are made of it alone.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.studies.theorem_profile import ACTIVATIONS, DIRECTIONS, Case, Expert, Gate, least_distance
from megatron_compete.common.errors import CompeteError, run_command
from megatron_compete.common.files import try_lock

LOG = "distances.jsonl"
DISTANCES = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
KINK_DISTANCES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.4)
"""ReLU's exponents settle late."""
ATOMS_DISTANCES = (0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4)
"""Of three atoms: H falls with the sixth power, and has to stay above rounding."""
TRUTHS, TRUTHS_OF_THREE = (0, 1), (3,)


@dataclass(frozen=True)
class Line:
    """A finished profile."""

    case: Case
    eps: tuple[float, ...]
    distances: tuple[tuple[float, ...], ...]
    """H of each start, by eps."""
    seconds: float


def main() -> None:
    """Compute what is missing, then write the report."""
    arguments = parse_arguments()
    log = arguments.out / LOG
    cases = [case for case in planned() if any(fnmatch(case.name, pattern) for pattern in arguments.only)]
    if not cases:
        raise CompeteError(f"--only {' '.join(arguments.only)} is no profile's name: they are like {planned()[0].name}")
    if not arguments.report_only:
        arguments.out.mkdir(parents=True, exist_ok=True)
        if try_lock(arguments.out) is None:
            raise CompeteError(
                f"--out {arguments.out} is in use by another process: wait for it, or name another folder"
            )
        compute(cases, log, arguments.jobs)
    lines = read_lines(log)
    if not lines:
        raise CompeteError(f"{log} has no finished profile: run the command without --report-only")
    from examples.studies.theorem_report import write_report

    write_report(lines, len(planned()), arguments.out)
    print(f"{len(lines)} of {len(planned())} profiles: {arguments.out / 'report.md'}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the log, the tables and the figure"
    )
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="NAME", help="profiles to compute, by name; * is any"
    )
    parser.add_argument("--report-only", action="store_true", help="compute nothing, make the report of the log")
    arguments = parser.parse_args()
    if arguments.report_only and arguments.only != ["*"]:
        parser.error("--only says what to compute: with --report-only the report has all of the log")
    return arguments


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of processes, 1 or more")
    return int(text)


def planned() -> list[Case]:
    """Every profile, those of ReLU last, which take longest."""
    gates: list[tuple[Gate, bool]] = [
        ("softmax", True),
        ("softmax", False),
        ("response", True),
        ("response", False),
        ("share", False),
    ]
    main_table = [
        Case(expert, gate, bias, split, truth)
        for expert, split, (gate, bias), truth in product(sorted(ACTIVATIONS), DIRECTIONS, gates, TRUTHS)
        if gate == "softmax" or split != "gate-slope"  # responses have no slope of their own
    ]
    smooth: tuple[Expert, ...] = ("linear", "tanh")
    three_atoms = [
        Case(expert, gate, bias, "intercept", truth, atoms=3)
        for expert, (gate, bias), truth in product(smooth, gates, TRUTHS)
    ]
    three_experts = [
        Case(expert, gate, bias, "intercept", truth, experts=3)
        for expert, (gate, bias), truth in product(sorted(ACTIVATIONS), gates, TRUTHS_OF_THREE)
    ]
    refined = [
        Case(case.expert, case.gate, case.bias, case.split, case.truth, refined=2)
        for case in main_table
        if case.truth == 0 and case.split == "intercept"
    ]
    return sorted([*main_table, *three_atoms, *three_experts, *refined], key=lambda case: case.expert == "relu")


def distances_of(case: Case) -> tuple[float, ...]:
    """The distances of the two atoms."""
    return KINK_DISTANCES if case.expert == "relu" else ATOMS_DISTANCES if case.atoms == 3 else DISTANCES


def compute(cases: list[Case], log: Path, jobs: int) -> None:
    """Append a line for each profile that the log does not have."""
    drop_torn_line(log)
    done = {line.case for line in read_lines(log)}
    missing = [case for case in cases if case not in done]
    with log.open("a") as file, contextlib.ExitStack() as stack:
        if jobs > 1:  # started anew: a fork of a process whose libraries have threads may hang
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(jobs))
            finished: Iterator[dict[str, Any]] = pool.imap_unordered(profile, missing)
        else:
            finished = map(profile, missing)
        for number, line in enumerate(finished, 1):
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(f"{number} of {len(missing)}: {Case(**line['case']).name} in {line['seconds']:.1f} s", flush=True)


def profile(case: Case) -> dict[str, Any]:
    """One line of the log. Distances keep eight digits, more than the search is good for."""
    torch.set_num_threads(1)
    began = time.process_time()
    eps = distances_of(case)
    found = [[float(f"{distance:.8g}") for distance in least_distance(case, one)] for one in eps]
    return {"case": asdict(case), "eps": eps, "distances": found, "seconds": round(time.process_time() - began, 2)}


def drop_torn_line(log: Path) -> None:
    """Cut off what a kill left of a last line."""
    if log.exists():
        content = log.read_bytes()
        os.truncate(log, content.rfind(b"\n") + 1)


def read_lines(log: Path) -> list[Line]:
    """What the log holds of finished profiles; a last line that a kill cut off is left out.

    Raises:
        CompeteError: another line is damaged, or its distances are not those of this version.
    """
    return list(_lines(log)) if log.exists() else []


def _lines(log: Path) -> Iterator[Line]:
    for number, text in enumerate(log.read_text().split("\n")[:-1], 1):
        try:
            entry = json.loads(text)
            case = Case(**entry["case"])
            line = Line(case, tuple(entry["eps"]), tuple(map(tuple, entry["distances"])), float(entry["seconds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise CompeteError(
                f"{log}, line {number} is no finished profile ({error}): delete the line and run again"
            ) from None
        if line.eps != distances_of(case) or len(line.distances) != len(line.eps):
            raise CompeteError(
                f"{log}, line {number} has other distances than this version computes: name an empty --out"
            )
        yield line


if __name__ == "__main__":
    run_command(main)
