#!/usr/bin/env python3
"""The scoring pass beside a large bf16 matrix product, on a GPU.

    python benchmarks/scoring.py                          # all shapes: fused, fused in FP8, one expert after the other
    python benchmarks/scoring.py --shape 154m 30b-a3b --json scoring.json
    python benchmarks/scoring.py --tune --seconds 120     # every candidate of moe/kernels/tiles.py, and the fastest

A round runs the product and each variant in turn; a number is the median over rounds, and a share the median of the
shares within a round. Inputs and weights rotate, so that none is warm in L2 from the round before. Before anything is
timed, the kernels' scores are compared with those of torch's operations. The report is written after every layer, and a
layer that fails does not stop the next; the exit code is 1 then.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scoring_shapes import SHAPES, Shape
from benchmarks.summary import hardware
from megatron_compete.common.errors import CompeteError, run_command


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--shape", nargs="+", choices=names, default=names, help="which layers (default all)")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds (default 20)")
    parser.add_argument("--tune", action="store_true", help="measure the candidates of the table of tiles instead")
    parser.add_argument("--seconds", type=float, default=600.0, help="no layer or candidate is begun after them (default 600)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise CompeteError(f"--rounds {arguments.rounds} must be 1 or more")
    return arguments


def check_gpu() -> None:
    """Raise a `CompeteError` where nothing can be measured."""
    from megatron_compete.moe.kernels.coverage import NotCovered, check_device, is_interpreted

    if is_interpreted():
        raise CompeteError("TRITON_INTERPRET is set, and an interpreter has no speed worth measuring: unset it")
    try:
        check_device()
    except NotCovered as reason:
        raise CompeteError(
            f"benchmarks/scoring.py cannot run here: {reason}. benchmarks/kernel_resources.py needs no GPU"
        ) from None


def print_rates(results: list[dict[str, Any]]) -> None:
    """TFLOP/s of each variant, and its share of the product's."""
    table = Table(title=f"Scoring pass, bf16 unless named\n{hardware()}", title_justify="left")
    for column in ("layer", "variant", "ms", "TFLOP/s", "share of matmul", "peak MB"):
        table.add_column(column, justify="left" if column in ("layer", "variant") else "right")
    for result in results:
        for name, row in result.get("variants", {}).items():
            table.add_row(
                result["shape"]["name"], name, f"{row['ms']:.3f}", f"{row['tflops']:.0f}", f"{row['share']:.2f}",
                f"{row['peak_mb']:.0f}",
            )  # fmt: skip
    Console(highlight=False, width=120).print(table)


def print_tuning(results: list[dict[str, Any]]) -> None:
    """Milliseconds of each candidate, the one in use first; the fastest is marked."""
    table = Table(title=f"Tiles of the scoring kernels\n{hardware()}", title_justify="left")
    for column in ("layer", "kernel", "tiles", "ms", ""):
        table.add_column(column)
    for result in results:
        for kernel, rows in result.get("kernels", {}).items():
            fastest = min((row for row in rows if row["ms"] is not None), key=lambda row: row["ms"], default=None)
            for index, row in enumerate(rows):
                notes = (["in use"] if index == 0 else []) + (["fastest"] if row is fastest else [])
                tiles = ", ".join(f"{name} {value}" for name, value in row["tiles"].items())
                milliseconds = row["why"] if row["ms"] is None else f"{row['ms']:.3f}"
                table.add_row(result["shape"]["name"], kernel, tiles, milliseconds, ", ".join(notes))
    Console(highlight=False, width=150).print(table)


def measure_all(
    shapes: list[Shape],
    measure: Callable[[Shape], dict[str, Any]],
    deadline: float,
    write: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """What `measure` found, by layer, or its `error`; handed to `write` after each.

    Args:
        deadline: on `time.monotonic`; no layer is begun after it.
    """
    results: list[dict[str, Any]] = []
    for shape in shapes:
        if time.monotonic() > deadline:
            found: dict[str, Any] = {"error": "no time left"}
        else:
            try:
                found = measure(shape)
            except Exception as error:  # the other layers may work, and time on a GPU is short
                traceback.print_exc()
                found = {"error": f"{type(error).__name__}: {error}"}
        results.append({"shape": asdict(shape), **found})
        write(results)
        torch.cuda.empty_cache()
    return results


def main() -> None:
    arguments = parse_arguments()
    check_gpu()
    deadline = time.monotonic() + arguments.seconds
    from benchmarks.scoring_measure import measure_rates, measure_tiles

    def measure(shape: Shape) -> dict[str, Any]:
        if arguments.tune:
            return measure_tiles(shape, arguments.rounds, deadline)
        return measure_rates(shape, arguments.rounds)

    def write(results: list[dict[str, Any]]) -> None:
        if arguments.json:
            written = {"hardware": hardware(), "rounds": arguments.rounds, "tune": arguments.tune, "results": results}
            arguments.json.write_text(json.dumps(written, indent=1))

    shapes = [shape for shape in SHAPES if shape.name in arguments.shape]
    results = measure_all(shapes, measure, deadline, write)
    (print_tuning if arguments.tune else print_rates)(results)
    failed = [f"{result['shape']['name']}: {result['error']}" for result in results if "error" in result]
    for line in failed:
        print(line)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
