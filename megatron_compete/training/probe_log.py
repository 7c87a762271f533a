"""The probe of a job that trains: `--probe-log FILE --probe-data PREFIX`.

Megatron's own evaluation reads on through its validation set, so that two of them see different text, and knows nothing
of routers. The probe reads the same sequences each time, before the first step and after every `--probe-interval` steps.
Losses are the same with and without it. Beside its results stands what the training steps alone have cost, without the
probe, logging and checkpoints: in seconds by the clock, in seconds of this process's processor time, which other load
on a shared machine disturbs less, and in floating-point operations by Megatron's count, scoring passes included.

One JSON line a probe. A resumed job goes on in the same file; lines beyond the checkpoint are dropped.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from megatron.core.num_microbatches_calculator import get_num_microbatches
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import write_whole
from megatron_compete.resilience.agreement import on_rank_0
from megatron_compete.training.flops import RunningFlops
from megatron_compete.training.probe import digest_weights, probe, read_sequences
from megatron_compete.upstream import wrap_symbol


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags `--probe-*`."""
    flag = parser.add_argument_group("probe").add_argument
    flag(
        "--probe-log",
        help="JSON lines of held-out loss, router statistics, and the seconds and operations of the steps",
    )
    flag("--probe-data", help="prefix of the held-out dataset that the probe reads; the same for every job of a study")
    flag("--probe-sequences", type=int, default=64, help="sequences of --seq-length it reads")
    flag("--probe-interval", type=int, default=100, help="steps between two probes")


def check_probe_arguments(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for a probe that could not run."""
    if args.probe_log is None:
        return
    if args.vision_model_type is not None:
        raise CompeteError(
            f"--probe-log with --vision-model-type {args.vision_model_type}: the probe reads text alone, and a vision-language "
            "model takes pictures too; leave it out"
        )
    if args.probe_data is None:
        raise CompeteError("--probe-log without --probe-data: name the prefix of a held-out dataset")
    for name in ("probe_sequences", "probe_interval"):
        if getattr(args, name) < 1:
            raise CompeteError(f"--{name.replace('_', '-')} {getattr(args, name)} is out of range: give 1 or more")
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"):
        if getattr(args, name) > 1:
            raise CompeteError(
                f"--{name.replace('_', '-')} {getattr(args, name)} with --probe-log: the probe needs whole layers and "
                "sequences on each rank; use data and expert parallelism"
            )
    if getattr(args, "overlap_param_gather", False):
        raise CompeteError(
            "--overlap-param-gather with --probe-log: weights are not whole between steps; leave one out"
        )


class ProbeLog:
    """The file of one job, and the seconds that its training steps have taken so far."""

    def __init__(self, path: Path, write: bool) -> None:
        self.path, self.write = path, write
        self.wall_seconds = self.processor_seconds = 0.0
        self.is_open = False

    def resume(self, step: int) -> None:
        """Go on at `step`: drop later lines, and count on from the last one before."""
        self.is_open = True
        if not self.write:
            return
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in map(json.loads, lines) if line["step"] <= step] if step > 0 else []
        if kept and kept[-1]["step"] > 0:
            share = step / kept[-1]["step"]  # a checkpoint between two probes: at the mean cost of the steps before
            self.wall_seconds = kept[-1]["wall_seconds"] * share
            self.processor_seconds = kept[-1]["processor_seconds"] * share
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, line: dict[str, Any]) -> None:
        """Append a probe's line."""
        seconds = {"wall_seconds": self.wall_seconds, "processor_seconds": self.processor_seconds}
        if self.write:
            with self.path.open("a") as stream:
                stream.write(json.dumps(line | seconds) + "\n")

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Count what runs inside as training."""
        _wait_for_device()
        wall, processor = time.perf_counter(), time.process_time()
        yield
        _wait_for_device()
        self.wall_seconds += time.perf_counter() - wall
        self.processor_seconds += time.process_time() - processor


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def probed_steps(args: argparse.Namespace) -> Iterator[None]:
    """Within it, Megatron's training loop probes as the arguments say: nothing without `--probe-log`."""
    if args.probe_log is None:
        yield
        return
    sequences = on_rank_0(lambda: read_sequences(args.probe_data, args.probe_sequences, args.seq_length))
    log = ProbeLog(Path(args.probe_log), write=args.rank == 0)
    flops = RunningFlops(args)
    with (
        wrap_symbol("megatron.training.training:train_step", _probing(args, sequences, log, flops)),
        wrap_symbol("megatron.training.training:consume_seqlen_stats_in_iteration", flops.consume),
    ):
        yield


def _probing(args: argparse.Namespace, sequences: Tensor, log: ProbeLog, flops: RunningFlops) -> Callable[..., Any]:
    """Around Megatron's `train_step`: a clock, and a probe where one is due."""

    def train_step(
        upstream: Callable[..., Any], forward_step_func: Any, data_iterator: Any, model: list[Any], *rest: Any, iteration: int, **keywords: Any
    ) -> Any:  # fmt: skip
        if not log.is_open:
            log.resume(iteration)
            flops.begin()
            if iteration == 0:
                first = probe(model[0], sequences, args.micro_batch_size)
                log.add({"step": 0, "tokens": 0, "flops": flops.total, **first, "weights": digest_weights(model[0])})
        with log.clock():
            result = upstream(forward_step_func, data_iterator, model, *rest, iteration=iteration, **keywords)
        flops.add_step()
        done = iteration + 1
        if done % args.probe_interval == 0 or done == args.train_iters:
            found = probe(model[0], sequences, args.micro_batch_size)
            log.add({"step": done, "tokens": _tokens(args), "flops": flops.total, **found})
        return result

    return train_step


def _tokens(args: argparse.Namespace) -> int:
    """Tokens trained on after the step in progress."""
    batch = get_num_microbatches() * args.micro_batch_size * args.data_parallel_size
    return int((args.consumed_train_samples + batch) * args.seq_length)
