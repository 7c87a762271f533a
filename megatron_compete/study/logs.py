"""A study's raw logs, and what they say at each probe.

L layers with a router, E experts, N remembered tokens.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from megatron_compete.routing.router_statistics import shared_choices, unpack_choices
from megatron_compete.study.config import Study
from megatron_compete.study.folder import RunFolder

Series = dict[int, float]
"""{step: value}"""

METRICS = {
    "load-max": "tokens of the busiest expert of any layer, relative to the mean",
    "load-min": "tokens of the idlest expert of any layer, relative to the mean",
    "load-std": "standard deviation of the experts' tokens relative to their mean, mean over layers",
    "router-entropy": "entropy of the router's softmax in nats, mean over layers",
    "margin": "router's K-th largest probability minus the next, mean over layers",
    "coactivation": "share of an expert's tokens that its most frequent companion has too",
    "change-rate": "share of the probe tokens' experts that differ from those at the probe before",
    "saturation": "share of the experts of the last probe that were chosen already",
    "agreement": "share of the competition's winners that the router would have chosen (training steps)",
}
"""What is read off every probe, beside the loss."""


@dataclass(frozen=True)
class RunLog:
    """One finished run."""

    variant: str
    seed: int
    code: str
    weights: str
    """Digest of the initial weights without the routers'."""
    loss: Series
    tokens: Series
    seconds: dict[str, Series]
    """By clock: `processor`, `wall`."""
    flops: Series | None = None
    """Floating-point operations of training so far; None in logs from before they were kept."""
    metrics: dict[str, Series] = field(default_factory=dict)
    load_LE: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """Tokens of each expert at the last probe, relative to the layer's mean; empty without a router."""


def read_logs(study: Study, folder: Path) -> dict[str, list[RunLog]]:
    """The finished runs of each variant that has any, by seed."""
    found: dict[str, list[RunLog]] = {}
    for name in study.variants:
        for seed in study.seeds_of(name):
            place = RunFolder(folder / "runs" / name / f"seed-{seed}")
            finished = place.finished()
            if finished is not None and finished["steps"] == study.steps_of(name):
                found.setdefault(name, []).append(_read(name, seed, str(finished["code"]), place))
    return found


def _read(variant: str, seed: int, code: str, place: RunFolder) -> RunLog:
    lines = [json.loads(line) for line in place.probe_log.read_text().splitlines()]
    metrics = routing_metrics(lines)
    agreement = read_scalar(place.scalars, "competition/agreement")
    if agreement:
        metrics["agreement"] = agreement

    def series(key: str) -> Series:
        return {line["step"]: line[key] for line in lines}

    return RunLog(
        variant,
        seed,
        code,
        str(lines[0].get("weights", "")),
        series("loss"),
        series("tokens"),
        {clock: series(f"{clock}_seconds") for clock in ("processor", "wall")},
        series("flops") if "flops" in lines[-1] else None,
        metrics,
        relative_load(lines[-1]) if "load" in lines[-1] else np.zeros((0, 0)),
    )


def relative_load(line: dict[str, Any]) -> np.ndarray:
    """Tokens of each expert relative to its layer's mean, [L, E]."""
    load_LE = np.asarray(line["load"], dtype=np.float64)
    return load_LE / load_LE.mean(axis=1, keepdims=True)


def routing_metrics(lines: Sequence[dict[str, Any]]) -> dict[str, Series]:
    """`METRICS` by step from the probe's lines; what the trainer logs is not among them, nor what a router does not have
    (probabilities where it has no logits, anything where all experts or given ones are used)."""
    of_line: dict[str, tuple[str, Callable[[dict[str, Any]], float]]] = {
        "load-max": ("load", lambda line: float(relative_load(line).max())),
        "load-min": ("load", lambda line: float(relative_load(line).min())),
        "load-std": ("load", lambda line: float(relative_load(line).std(axis=1).mean())),
        "router-entropy": ("entropy", lambda line: mean(line["entropy"])),
        "margin": ("margin", lambda line: mean(line["margin"])),
        "coactivation": ("coactivation", lambda line: mean(line["coactivation"])),
    }
    metrics = {
        name: {line["step"]: read(line) for line in lines}
        for name, (key, read) in of_line.items()
        if all(key in line for line in lines)
    }
    if all("choices" in line for line in lines):
        steps = [line["step"] for line in lines]
        chosen = [unpack_choices(line["choices"], tuple(line["choices_shape"])) for line in lines]
        metrics["change-rate"] = {step: 1 - shared_choices(now, before) for step, before, now in zip(steps[1:], chosen, chosen[1:])}  # fmt: skip
        metrics["saturation"] = {step: shared_choices(one, chosen[-1]) for step, one in zip(steps, chosen)}
    return metrics


def read_scalar(path: Path, name: str) -> Series:
    """One of the scalars that the trainer logged, as means between two probes."""
    if not path.is_file():
        return {}
    with path.open(newline="") as stream:
        return {int(row["step"]): float(row["mean"]) for row in csv.DictReader(stream) if row["scalar"] == name}


def write_curves(logs: dict[str, list[RunLog]], path: Path) -> None:
    """Every number of every probe as one tidy CSV file."""
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(
            ["variant", "seed", "step", "tokens", "flops", "processor-seconds", "wall-seconds", "loss", *METRICS]
        )
        for runs in logs.values():
            for run in runs:
                for step, loss in run.loss.items():
                    seconds = [f"{run.seconds[clock][step]:.3f}" for clock in ("processor", "wall")]
                    values = [run.metrics.get(name, {}).get(step) for name in METRICS]
                    shown = ["" if value is None else f"{value:.6g}" for value in values]
                    flops = "" if run.flops is None else f"{run.flops[step]:.6g}"
                    table.writerow(
                        [run.variant, run.seed, step, int(run.tokens[step]), flops, *seconds, f"{loss:.6f}", *shown]
                    )
