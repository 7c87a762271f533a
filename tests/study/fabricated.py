"""A study folder with the raw logs that runs would have left, without training anything."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from megatron_compete.routing.router_statistics import pack_choices
from megatron_compete.study.config import Study, read_study
from megatron_compete.study.folder import FINISHED, RunFolder, write_json
from megatron_compete.study.logs import RunLog

LAYERS, EXPERTS, TOP_K, REMEMBERED = 2, 8, 2, 32

CONTENT: dict[str, Any] = {
    "title": "A <study> of nothing",
    "steps": 40,
    "seeds": [1, 2, 3],
    "baseline": "topk",
    "probe": {"interval": 10},
    "arguments": {"num-experts": EXPERTS, "moe-router-topk": TOP_K},
    "variants": {
        "topk": {"label": "top-K", "arguments": {"router": "topk"}},
        "paper": {"arguments": {"compete-rate": 0.07}},
        "slow": {"arguments": {"compete-rate": 1.0}},
    },
}


def study_of(folder: Path, **changes: Any) -> Study:
    """A study read from a file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(CONTENT | changes, sort_keys=False))
    return read_study(path)


def run_log(
    variant: str, seed: int, losses: Mapping[int, float], seconds: float = 1.0, flops: float | None = None
) -> RunLog:
    """A finished run without router metrics: `seconds` and `flops` are those of a step."""
    clock = {step: seconds * step for step in losses}
    counted = None if flops is None else {step: flops * step for step in losses}
    tokens = {step: 100.0 * step for step in losses}
    return RunLog(variant, seed, "c", f"w{seed}", dict(losses), tokens, {"processor": clock, "wall": clock}, counted)


def ending(**losses: list[float]) -> dict[str, list[RunLog]]:
    """Runs of 40 steps by variant (`_` for a dash) with these losses at the end, for seeds 1, 2, ..."""
    return {
        name: [run_log(name, seed, {0: 4.0, 40: loss}) for seed, loss in enumerate(some, start=1)]
        for name, some in ((name.replace("_", "-"), some) for name, some in losses.items())
    }


def write_logs(
    study: Study,
    folder: Path,
    cost: dict[str, float] | None = None,
    lead: dict[str, float] | None = None,
    flops: dict[str, float] | None = None,
    without: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Raw logs of all runs.

    Args:
        cost: seconds a step by variant (1).
        lead: how much lower a variant's losses are (0).
        flops: floating-point operations a step by variant; None: the logs have none.
        without: keys that a variant's lines do not have.
    """
    for variant in study.variants:
        for seed in study.seeds_of(variant):
            place = RunFolder(folder / "runs" / variant / f"seed-{seed}")
            place.path.mkdir(parents=True)
            lines = [
                _line(study, variant, seed, step, (cost or {}).get(variant, 1.0), (lead or {}).get(variant, 0.0))
                for step in range(0, study.steps_of(variant) + 1, study.probe.interval)
            ]
            for line in lines:
                if flops is not None:
                    line["flops"] = line["step"] * flops.get(variant, 1.0)
                for key in (without or {}).get(variant, ()):
                    del line[key]
            place.probe_log.write_text("".join(json.dumps(line) + "\n" for line in lines))
            scalars = ["scalar,step,mean,values"]
            if variant != study.baseline:
                scalars += [f"competition/agreement,{line['step']},{0.5 + line['step'] / 1e4},3" for line in lines[1:]]
            place.scalars.write_text("\n".join(scalars) + "\n")
            write_json(
                place.path / FINISHED,
                {"digest": "d", "code": "c", "steps": study.steps_of(variant), "job_seconds": 60.0},
            )


def _line(study: Study, variant: str, seed: int, step: int, cost: float, lead: float) -> dict[str, Any]:
    draw = np.random.default_rng(zlib.crc32(f"{variant} {seed} {step}".encode()))
    chosen_LNE = torch.zeros(LAYERS, REMEMBERED, EXPERTS, dtype=torch.bool)
    for token_E in chosen_LNE.flatten(0, 1):
        token_E[draw.permutation(EXPERTS)[:TOP_K]] = True
    return {
        "step": step,
        "tokens": step * 100,
        "loss": 4.0 - step / study.steps + 0.01 * seed - lead * (step > 0),
        "load": draw.integers(10, 50, (LAYERS, EXPERTS)).tolist(),
        "entropy": [1.5] * LAYERS,
        "margin": [0.25] * LAYERS,
        "coactivation": [0.3] * LAYERS,
        "choices": pack_choices(chosen_LNE),
        "choices_shape": list(chosen_LNE.shape),
        "wall_seconds": 2 * cost * step,
        "processor_seconds": cost * step,
    } | ({"weights": f"w{seed}"} if step == 0 else {})
