#!/usr/bin/env python3
"""What the competition schedule costs to draw, beside the authors' procedure written plainly.

    python benchmarks/schedule.py                        # 1,000,000 steps of 128 layers
    python benchmarks/schedule.py --layers 48 --stages 8 --json schedule.json

Each row is measured in a process of its own: processor time of the whole table and peak memory of that process
(interpreter and numpy included), then the mean of `is_active` over random steps of the run, nothing drawn before. The
plain procedure is timed over fewer steps; its cost grows with their number, and is scaled to the run's.
"""

import argparse
import json
import multiprocessing
import random
import resource
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from megatron_compete.common.errors import CompeteError, run_command
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.schedule.table import POLICIES

PLAIN = "authors' procedure, plain"
PLAIN_STEPS = 20_000


def plain_procedure(num_layers: int, rate: float, max_active: int, num_steps: int, seed: int) -> NDArray[np.bool_]:
    """The authors' draw [steps, layers]: layer by layer and step by step, over the whole run."""
    draws = random.Random(seed)
    table = np.zeros((num_steps, num_layers), dtype=bool)
    load = [0] * num_steps
    for layer in range(num_layers):
        mine = [False] * num_steps
        for step in range(num_steps):
            if draws.random() >= rate:
                continue
            order = chain([step], range(step - 1, -1, -1), range(step + 1, num_steps))
            place = next((at for at in order if load[at] < max_active and not mine[at]), None)
            if place is not None:
                mine[place] = True
                load[place] += 1
        table[:, layer] = mine
    return table


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: the cost of a table and of random access."""
    if name == PLAIN:
        started = time.process_time()
        table = plain_procedure(arguments.layers, arguments.rate, arguments.max_active, PLAIN_STEPS, seed=1)
        seconds = (time.process_time() - started) * arguments.steps / PLAIN_STEPS
        return {"policy": name, "table_seconds": seconds, **describe(table)}
    started = time.process_time()
    table = schedule_of(name, arguments).table(0, arguments.steps)
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    described = describe(table)
    fresh = schedule_of(name, arguments)
    where = np.random.default_rng(0)
    steps = where.integers(0, arguments.steps, arguments.queries).tolist()
    layers = where.integers(1, arguments.layers + 1, arguments.queries).tolist()
    started = time.process_time()
    for step, layer in zip(steps, layers):
        fresh.is_active(step, layer)
    access = (time.process_time() - started) / arguments.queries
    return {"policy": name, "table_seconds": seconds, "peak_bytes": peak, "is_active_seconds": access, **described}


def schedule_of(policy: str, arguments: argparse.Namespace) -> CompetitionSchedule:
    """The schedule of one row; bernoulli has no limit."""
    layers = arguments.layers
    stage_chunks = tuple((layer * arguments.stages // layers, 0) for layer in range(layers))
    max_active = layers if policy == "bernoulli" else arguments.max_active
    return CompetitionSchedule(layers, arguments.rate, max_active, policy, stage_chunks)  # type: ignore[arg-type]


def describe(table: NDArray[np.bool_]) -> dict[str, float]:
    """How equally layers compete, and how many at once."""
    rates = table.mean(axis=0)
    return {"lowest_rate": rates.min(), "highest_rate": rates.max(), "most_at_once": int(table.sum(axis=1).max())}


def print_rows(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """The table of the terminal."""
    print(f"{arguments.steps:,} steps x {arguments.layers} layers, rate {arguments.rate}, A_max {arguments.max_active}, {arguments.stages} stages")  # fmt: skip
    print(f"{'policy':28}{'table':>10}{'peak memory':>14}{'is_active':>13}{'rates of layers':>20}{'most at once':>14}")
    for row in rows:
        peak = f"{row['peak_bytes'] / 1e6:.0f} MB" if "peak_bytes" in row else "-"
        access = f"{row['is_active_seconds'] * 1e6:.1f} us" if "is_active_seconds" in row else "whole table"
        rates = f"{row['lowest_rate']:.5f}-{row['highest_rate']:.5f}"
        print(f"{row['policy']:28}{row['table_seconds']:>8.2f} s{peak:>14}{access:>13}{rates:>20}{row['most_at_once']:>14}")  # fmt: skip
    print(f"{PLAIN}: timed over {PLAIN_STEPS:,} steps and scaled; any answer needs the whole table")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--layers", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.07)
    parser.add_argument("--max-active", type=int, default=10)
    parser.add_argument("--stages", type=int, default=16, help="pipeline stages that balanced spreads over")
    parser.add_argument("--queries", type=int, default=200_000, help="random accesses that are timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if min(arguments.steps, arguments.queries, arguments.stages) < 1:
        raise CompeteError("--steps, --queries and --stages must be 1 or more")
    for policy in POLICIES:
        schedule_of(policy, arguments)
    context = multiprocessing.get_context("spawn")
    rows = []
    for name in (*POLICIES, PLAIN):
        with context.Pool(1) as process:
            rows.append(process.apply(measure, (name, arguments)))
    print_rows(rows, arguments)
    if arguments.json:
        asked = {name: value for name, value in vars(arguments).items() if name != "json"}
        arguments.json.write_text(json.dumps({"arguments": asked, "rows": rows}, indent=1, default=float))


if __name__ == "__main__":
    run_command(main)
