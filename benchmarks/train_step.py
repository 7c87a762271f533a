#!/usr/bin/env python3
"""Whole training steps of a recipe on one device: stock Megatron top-K against competition routing.

    python benchmarks/train_step.py                                  # examples/competesmoe_154m.yaml, bf16
    python benchmarks/train_step.py --fp8 tensorwise --json fp8.json
    python benchmarks/train_step.py --recipe FILE --rounds 10 -- --micro-batch-size 4

What follows `--` overrides the recipe by name. The trainer is the real one, on mock data; in place of each of its steps
one of several models in the same process takes a step, so that a drift of the machine hits all alike, and all ratios are
medians of ratios within a round. A round has one step of every kind: top-K, rate 0, competition at steps at which
0, 1, ... A_max layers compete, and the naive way at A_max. What a step costs on average follows from how often the
schedule has so many layers. Steps whose metrics are logged (one in 50 here) are not among them.
"""

import argparse
import os
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ranks import be_the_only_rank
from benchmarks.summary import hardware, write_report
from megatron_compete.common.errors import CompeteError, run_command
from megatron_compete.config import CompeteConfig
from megatron_compete.launch.launchers import environment_defaults, silence_cpu_warnings
from megatron_compete.launch.recipe import MODULE, read_recipe

ROOT = Path(__file__).resolve().parent.parent
LOG_INTERVAL = 50
SCHEDULE_STEPS = 10_000
"""Steps of the schedule from which frequencies are counted."""
UNTIMED = 2
"""Rounds before the timed ones: the first compiles and fills caches, the second measures memory."""
ONE_DEVICE: dict[str, Any] = {
    "tensor-model-parallel-size": 1, "pipeline-model-parallel-size": 1,
    "expert-model-parallel-size": 1, "context-parallel-size": 1, "sequence-parallel": False,
    "mock-data": True, "tokenizer-type": "NullTokenizer", "eval-iters": 0, "save-interval": None,
    "log-interval": LOG_INTERVAL, "tensorboard-log-interval": LOG_INTERVAL, "overlap-grad-reduce": False,
    "overlap-param-gather": False,
}  # fmt: skip
"""Over every recipe; with the batch of one data parallel rank, one microbatch."""


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and the overrides after `--`."""
    tokens = sys.argv[1:]
    at = tokens.index("--") if "--" in tokens else len(tokens)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "examples/competesmoe_154m.yaml")
    parser.add_argument("--rounds", type=int, default=12, help="timed rounds (default 12)")
    parser.add_argument("--fp8", choices=("delayed", "tensorwise", "blockwise"), help="train in FP8 with this recipe")
    parser.add_argument(
        "--seconds", type=float, default=3600.0, help="no round is begun after them, one timed round apart"
    )
    parser.add_argument("--no-naive", action="store_true", help="leave the naive competing step out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args(tokens[:at]), tokens[at + 1 :]


@dataclass
class Leg:
    """One kind of step in a round."""

    variant: str
    competing: int
    """Layers that compete at it."""
    step: int
    """A step of the schedule with so many."""
    milliseconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    error: str | None = None
    """Why it is left out from then on."""

    def __str__(self) -> str:
        return f"{self.variant}@{self.competing}" if self.variant in ("compete", "naive") else self.variant


def plan_legs(counts: list[int], naive: bool) -> list[Leg]:
    """A round's legs from the number of competing layers at each step of the schedule."""
    unlogged = [(step, count) for step, count in enumerate(counts) if (step + 1) % LOG_INTERVAL != 0]
    first = {count: step for step, count in reversed(unlogged)}
    legs = [Leg("topk", 0, first[min(first)]), Leg("rate0", 0, first[min(first)])]
    legs += [Leg("compete", count, first[count]) for count in sorted(first)]
    return legs + ([Leg("naive", max(first), first[max(first)])] if naive else [])


class Rotation:
    """Stands in for Megatron's `train_step`: at each of the trainer's iterations another model's step.

    A leg that fails is left out from then on, and top-K takes its place; top-K itself must work.

    Args:
        legs: of a round; who begins rotates from round to round.
        build: builds the model of a variant, when it is first needed.
        step: Megatron's own.
        deadline: on `time.monotonic`; training ends with the first round that ends after it, one timed round at least.
    """

    def __init__(self, legs: list[Leg], build: Any, step: Any, deadline: float = float("inf")) -> None:
        self.legs = legs
        self.build = build
        self.step = step
        self.deadline = deadline
        self.trainees: dict[str, Any] = {}
        self.iteration = 0

    def __call__(self, forward_step: Any, data: Any, model: Any, optimizer: Any, scheduler: Any, config: Any, run: Any, *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        """A step by the trainer's call, whose own model is the top-K one."""
        from megatron.training import get_args

        from benchmarks.train_variants import Trainee

        if not self.trainees:
            self.trainees["topk"] = Trainee(model, optimizer, scheduler, config)

        def step_of(variant: str) -> Any:
            if variant not in self.trainees:
                self.trainees[variant] = self.build(variant)
            own = self.trainees[variant]
            return self.step(forward_step, data, own.model, own.optimizer, own.scheduler, own.config, run, *args, **kwargs)  # fmt: skip

        round_, position = divmod(self.iteration, len(self.legs))
        leg = self.legs[(position + round_) % len(self.legs)]
        self.iteration += 1
        if position == len(self.legs) - 1 and round_ >= UNTIMED and time.monotonic() > self.deadline:
            get_args().train_iters = self.iteration  # the trainer's loop ends with this step
        before, get_args().curr_iteration = get_args().curr_iteration, leg.step
        try:
            if leg.error is not None:
                return step_of("topk")
            try:
                return self._timed(leg, round_, lambda: step_of(leg.variant))
            except Exception as error:
                if leg.variant == "topk" or isinstance(error, torch.AcceleratorError):
                    raise
                traceback.print_exc()
                leg.error = f"{type(error).__name__}: {error}"
                leg.milliseconds.clear()
                return step_of("topk")
        finally:
            get_args().curr_iteration = before

    def _timed(self, leg: Leg, round_: int, step: Any) -> Any:
        from benchmarks.memory import PeakMemory
        from benchmarks.variants import device

        if round_ == UNTIMED - 1:
            with PeakMemory(device()) as memory:
                result = step()
            leg.peak_bytes = memory.peak
            return result
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        result = step()
        end.record()
        torch.cuda.synchronize()
        if round_ >= UNTIMED:
            leg.milliseconds.append(start.elapsed_time(end))
        return result


def trainer_arguments(arguments: argparse.Namespace, overrides: list[str]) -> list[str]:
    """The trainer's command line for one device, without the number of iterations."""
    recipe = read_recipe(arguments.recipe)
    recipe.launch.clear()
    recipe.override(overrides)
    settings = ONE_DEVICE | {"global-batch-size": recipe.arguments["micro-batch-size"]}
    settings["num-workers"] = 2 if torch.cuda.is_available() else 0
    if torch.cuda.is_available() and not _has_apex():
        settings["no-gradient-accumulation-fusion"] = True
    recipe.arguments |= settings
    command = recipe.command()
    return command[command.index(MODULE) + 1 :]


def _has_apex() -> bool:
    from megatron_compete.training.arguments import installed

    return installed("fused_weight_gradient_mlp_cuda")


def measure(arguments: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
    """Train as often as the rounds need and the time allows; returns the report."""
    deadline = time.monotonic() + arguments.seconds
    be_the_only_rank()
    os.environ.update(environment_defaults())
    silence_cpu_warnings()
    from megatron_compete.launch import cpu_backend as cpu

    if cpu.is_needed():
        cpu.activate()
    from megatron.core.enums import ModelType
    from megatron.training import training
    from megatron.training.argument_utils import pretrain_cfg_container_from_args

    from benchmarks.fused_clipping import use_fused_clipping
    from benchmarks.train_variants import VARIANTS, build, config_of
    from megatron_compete.moe.competition import Competition
    from megatron_compete.training.batches import forward_step
    from megatron_compete.training.dataset_helpers import use_prebuilt_helpers
    from megatron_compete.training.datasets import build_datasets
    from megatron_compete.training.model import transformer_config
    from megatron_compete.training.parse import parse_arguments as parse_trainer

    use_prebuilt_helpers()
    tokens = trainer_arguments(arguments, overrides)
    sys.argv = ["train_step", *tokens, "--train-iters", "1000000"]
    args = parse_trainer()
    competition = Competition.of_model(CompeteConfig.from_arguments(args), transformer_config(args), lambda: 0)
    counts = competition.schedule.table(0, SCHEDULE_STEPS).sum(axis=1).tolist()
    legs = plan_legs(counts, naive=not arguments.no_naive)
    rotation = Rotation(
        legs, lambda variant: build(args, config_of(args, variant, arguments.fp8)), training.train_step, deadline
    )
    training.train_step = rotation
    clipping = use_fused_clipping()
    args.train_iters = (UNTIMED + arguments.rounds) * len(legs)
    assert set(VARIANTS) >= {leg.variant for leg in legs}
    training.pretrain(
        pretrain_cfg_container_from_args(args, config_of(args, "topk", arguments.fp8)), build_datasets,
        ModelType.encoder_or_decoder, forward_step,
    )  # fmt: skip
    torch.distributed.destroy_process_group()
    return report(legs, Counter(counts)) | {
        "hardware": hardware(), "recipe": arguments.recipe.name, "arguments": tokens, "fp8": arguments.fp8,
        "dtype": str(args.params_dtype).removeprefix("torch."), "rounds": len(legs[0].milliseconds),
        "gradient_clipping": clipping,
    }  # fmt: skip


def report(legs: list[Leg], counts: Counter[int]) -> dict[str, Any]:
    """Ratios to top-K, by leg and averaged over the schedule.

    Returns:
        `legs` (by name: ms, ms_all, peak in bytes above the state between steps, over_topk), `failed` (why, by leg),
        `frequency` (share of the schedule's steps, by number of competing layers), `amortised` (mean competing step of
        the schedule over top-K), `rate0`, both None where a leg they need failed, and with the naive way
        `naive_over_compete` (time and peak at A_max).
    """
    baseline = legs[0]
    failed = {str(leg): leg.error for leg in legs if leg.error is not None}
    legs = [leg for leg in legs if leg.error is None]
    by_name = {str(leg): leg for leg in legs}
    over = {str(leg): _ratio(leg, baseline) for leg in legs}
    frequency = {count: number / counts.total() for count, number in sorted(counts.items())}
    competing = {count: over.get(f"compete@{count}") for count in frequency}
    found: dict[str, Any] = {
        "legs": {
            str(leg): {
                "ms": median(leg.milliseconds), "ms_all": leg.milliseconds, "peak": leg.peak_bytes,
                "over_topk": over[str(leg)],
            }
            for leg in legs
        },
        "failed": failed,
        "frequency": frequency,
        "amortised": None if None in competing.values() else sum(share * competing[count] for count, share in frequency.items()),
        "rate0": over.get("rate0"),
    }  # fmt: skip
    naive = [leg for leg in legs if leg.variant == "naive" and f"compete@{leg.competing}" in by_name]
    if naive:
        ours = by_name[f"compete@{naive[0].competing}"]
        extra = median(
            (dense - top) / (mine - top) if mine > top else float("nan")
            for dense, mine, top in zip(naive[0].milliseconds, ours.milliseconds, baseline.milliseconds)
        )
        found["naive_over_compete"] = {
            "layers": naive[0].competing,
            "step": _ratio(naive[0], ours),
            "extra_time": extra,
            "peak": naive[0].peak_bytes / ours.peak_bytes,
        }
    return found


def _ratio(above: Leg, below: Leg) -> float:
    return median(a / b for a, b in zip(above.milliseconds, below.milliseconds))


def print_report(found: dict[str, Any]) -> None:
    """The numbers on the console."""
    print(f"{found['recipe']}, {found['dtype']}{', FP8 ' + found['fp8'] if found['fp8'] else ''}: {found['hardware']}")
    for name, leg in found["legs"].items():
        print(f"{name:12s} {leg['ms']:10.2f} ms  {leg['over_topk']:6.3f}x top-K  peak {leg['peak'] / 1e6:10.1f} MB")
    for name, error in found["failed"].items():
        print(f"{name:12s} FAILED {error}")
    if found["amortised"] is not None and found["rate0"] is not None:
        print(f"amortised over the schedule {found['amortised']:.3f}x top-K, rate 0 {found['rate0']:.3f}x")
    if "naive_over_compete" in found:
        naive = found["naive_over_compete"]
        print(
            f"naive over ours with {naive['layers']} layers: step {naive['step']:.2f}x, "
            f"what it adds to top-K {naive['extra_time']:.2f}x, peak {naive['peak']:.2f}x"
        )


def main() -> None:
    arguments, overrides = parse_arguments()
    if arguments.rounds < 1:
        raise CompeteError(f"--rounds {arguments.rounds}: give 1 or more")
    found = measure(arguments, overrides)
    print_report(found)
    if arguments.json:
        write_report(arguments.json, found)
    if found["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
