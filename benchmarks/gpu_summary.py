#!/usr/bin/env python3
"""The results of `gpu_suite.sh` as one table: what is wanted beside what was measured.

    python benchmarks/gpu_summary.py OUT            # writes OUT/summary.md and OUT/summary.json, prints the first

A benchmark that has no result file is `missing`, never a guess. Needs nothing but Python.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

Reports = dict[str, dict[str, Any]]
"""Result files by name, without `.json`."""
RESULTS = ("scoring", "competition_step", "train_step", "train_step_fp8", "fp8_curves")
MISSING = "missing"


@dataclass(frozen=True)
class Target:
    """A number that the GPU path must reach, and where it is found."""

    what: str
    limit: float | None
    """None: it is reported, and nothing is asked of it."""
    at_least: bool
    file: str
    find: Callable[[dict[str, Any]], float | None]
    percent: bool = False

    def row(self, reports: Reports) -> dict[str, Any]:
        """As a row of the table."""
        value = None
        if self.file in reports:
            try:
                value = self.find(reports[self.file])
            except (KeyError, IndexError, TypeError, ValueError):  # an older or half-written report
                value = None
        met = None
        if value is not None and self.limit is not None:
            met = math.isfinite(value) and (value >= self.limit if self.at_least else value <= self.limit)
        wanted = "-" if self.limit is None else ("at least " if self.at_least else "at most ") + self._text(self.limit)
        return {
            "what": self.what, "wanted": wanted, "measured": MISSING if value is None else self._text(value),
            "value": value, "met": met, "file": f"{self.file}.json",
        }  # fmt: skip

    def _text(self, value: float) -> str:
        return f"{100 * value:.2f}%" if self.percent else f"{value:.3f}x"


def scored(report: dict[str, Any], *names: str) -> float:
    """The least share of the matmul's rate that the fused scoring pass reaches on the named shapes of `scoring.json`."""
    return min(variants["fused"]["share"] for variants in _variants(report, names))


def scored_fp8(report: dict[str, Any], *names: str) -> float:
    """The least speed-up of fused FP8 scoring, weights quantised anew, over bf16 on the named shapes."""
    return min(
        median(bf16 / fp8 for bf16, fp8 in zip(variants["fused"]["ms_all"], variants["fused-fp8"]["ms_all"]))
        for variants in _variants(report, names)
    )


def _variants(report: dict[str, Any], names: tuple[str, ...]) -> list[dict[str, Any]]:
    by_name = {result["shape"]["name"]: result.get("variants", {}) for result in report["results"]}
    return [by_name[name] for name in names]


def layer_ratio(report: dict[str, Any], index: int, ratio: str) -> float | None:
    """Time of one kind of layer step over another, in a case of `competition_step.json`."""
    return report["cases"][index]["time_ratios"][ratio]


def layer_peak(report: dict[str, Any], index: int) -> float | None:
    """Peak memory of the naive layer step over ours."""
    steps = report["cases"][index]["steps"]
    return steps["naive"]["peak"] / steps["competing"]["peak"]


WIDE = ("mixtral", "30b-a3b")
LAYERS = ("154M", "679M", "Mixtral 8x7B", "30B-A3B class")
FP8_RECIPES = ("delayed", "tensorwise", "blockwise")


def targets() -> Iterator[Target]:
    """All rows, in the order of the table."""
    yield Target("scoring pass over a large bf16 matmul, wide experts, the worse of two", 0.60, True, "scoring", lambda r: scored(r, *WIDE), percent=True)  # fmt: skip
    yield Target("scoring pass over a large bf16 matmul, experts of width 128 (154M)", 0.40, True, "scoring", lambda r: scored(r, "154m"), percent=True)  # fmt: skip
    yield Target("FP8 scoring over bf16 scoring, wide experts, the worse of two", 1.4, True, "scoring", lambda r: scored_fp8(r, *WIDE))  # fmt: skip
    yield Target("154M, mean step at rate 0.07, A_max 3, over stock top-K", 1.10, False, "train_step", lambda r: r["amortised"])  # fmt: skip
    yield Target("154M, step at rate 0 over stock top-K", 1.02, False, "train_step", lambda r: r["rate0"])
    yield Target("154M, step with A_max competing layers: naive over ours", None, True, "train_step", lambda r: r["naive_over_compete"]["step"])  # fmt: skip
    for index, layer in enumerate(LAYERS):
        wanted = 2.5 if index == 0 else None
        yield Target(f"competing layer step over a normal one, {layer}", None, False, "competition_step", lambda r, i=index: layer_ratio(r, i, "competing/normal"))  # fmt: skip
        yield Target(f"layer step competing by utility over a normal one, {layer}", None, False, "competition_step", lambda r, i=index: layer_ratio(r, i, "utility/normal"))  # fmt: skip
        yield Target(f"naive layer step over ours, {layer}", wanted, True, "competition_step", lambda r, i=index: layer_ratio(r, i, "naive/competing"))  # fmt: skip
        yield Target(f"its peak memory over ours, {layer}", 3.0 if index == 0 else None, True, "competition_step", lambda r, i=index: layer_peak(r, i))  # fmt: skip
    for recipe in FP8_RECIPES:
        yield Target(f"loss curve in FP8 ({recipe}) from bf16, 300 steps, largest difference", 0.01, False, "fp8_curves", lambda r, n=recipe: r["largest_difference"][n] if r["steps"] >= 300 else None, percent=True)  # fmt: skip
    yield Target("154M in FP8 (tensorwise), mean step at rate 0.07 over top-K in FP8", None, False, "train_step_fp8", lambda r: r["amortised"])  # fmt: skip


def read_reports(folder: Path) -> Reports:
    """The result files that are there and whole."""
    reports = {}
    for name in RESULTS:
        path = folder / f"{name}.json"
        try:
            reports[name] = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            continue
    return reports


def read_parts(path: Path | None) -> list[dict[str, Any]]:
    """What became of the suite's parts, from its tab-separated notes."""
    if path is None or not path.exists():
        return []
    names = ("name", "status", "seconds", "exit_code", "last_line")
    return [dict(zip(names, line.split("\t"))) for line in path.read_text().splitlines()]


def fp8_over_bf16(reports: Reports) -> float | None:
    """Median top-K step in FP8 over that in bf16; from two runs, so a drift between them is in it."""
    try:
        one, other = (reports[name]["legs"]["topk"]["ms"] for name in ("train_step_fp8", "train_step"))
    except KeyError:
        return None
    return one / other


def summary(folder: Path, parts: Path | None, environment: Path | None) -> dict[str, Any]:
    """Everything that the table shows, and the parts' fate, as JSON."""
    reports = read_reports(folder)
    rows = [target.row(reports) for target in targets()]
    found = environment if environment is not None and environment.exists() else None
    return {
        "rows": rows,
        "fp8_over_bf16_topk_step": fp8_over_bf16(reports),
        "parts": read_parts(parts),
        "environment": json.loads(found.read_text()) if found else None,
    }


def markdown(found: dict[str, Any]) -> str:
    """The summary for people."""
    lines = ["# GPU suite", "", _hardware(found["environment"]), ""]
    lines += ["| what | wanted | measured | met |", "|---|---|---|---|"]
    marks = {True: "yes", False: "no", None: "-"}
    lines += [f"| {r['what']} | {r['wanted']} | {r['measured']} | {marks[r['met']]} |" for r in found["rows"]]
    if found["fp8_over_bf16_topk_step"] is not None:
        lines += ["", f"Top-K step in FP8 over bf16, of two runs: {found['fp8_over_bf16_topk_step']:.3f}x."]
    if found["parts"]:
        lines += ["", "| part | status | seconds | last line of its log |", "|---|---|---|---|"]
        lines += [f"| {p['name']} | {p['status']} | {p['seconds']} | {_cell(p['last_line'])} |" for p in found["parts"]]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _hardware(environment: dict[str, Any] | None) -> str:
    if environment is None:
        return "Environment: not recorded."
    device = environment["device"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    name = device["name"] if device else "no CUDA device"
    missing = ", ".join(environment["missing_modules"])
    text = f"{name}; Python {environment['python']}, {versions}."
    te = environment["transformer_engine"]
    text += "" if te == "ok" else f" Transformer Engine does not import: {te}."
    return text + (f" Missing modules: {missing}." if missing else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("--parts", type=Path, metavar="FILE", help="the suite's notes")
    parser.add_argument("--environment", type=Path, metavar="FILE", help="of benchmarks/environment.py")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"gpu_summary: {arguments.folder} is no folder: give the one that gpu_suite.sh wrote", file=sys.stderr)
        raise SystemExit(2)
    found = summary(arguments.folder, arguments.parts, arguments.environment)
    (arguments.folder / "summary.json").write_text(json.dumps(found, indent=2) + "\n")
    text = markdown(found)
    (arguments.folder / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
