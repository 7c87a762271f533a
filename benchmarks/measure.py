"""Time, traffic and memory of each variant of a case, on the ranks that are there."""

import time
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_layer import MoELayer

from benchmarks.cases import Case
from benchmarks.memory import PeakMemory
from benchmarks.traffic import count
from benchmarks.variants import Batch, build_variants, check_equal, device, make_batch, run_step

RATIOS = (("competing", "normal"), ("naive", "competing"))
"""Which variant is divided by which."""


def measure_case(case: Case, repeats: int, dtype: torch.dtype, grouped_gemm: bool) -> dict[str, Any]:
    """The whole measurement of one case; every rank calls it and gets the same result.

    Returns:
        `case`, `steps` (per variant: ms, cpu_ms, ms_all, gflop, and in bytes sent_forward, sent_backward, peak) and
        `time_ratios` (per pair of `RATIOS`, the median of the ratios within a repeat).
    """
    exact, batch = build_variants(case, torch.float32, grouped_gemm), make_batch(case, torch.float32)
    check_equal(exact, batch)
    layers = exact
    if dtype != torch.float32:
        del exact, layers
        layers, batch = build_variants(case, dtype, grouped_gemm), make_batch(case, dtype)
    steps: dict[str, dict[str, Any]] = {
        name: _traffic(layer, batch) | {"peak": _peak(layer, batch)} for name, layer in layers.items()
    }
    times, cpu_times = _times(layers, batch, repeats)
    for name, step in steps.items():
        step |= {"ms": median(times[name]), "cpu_ms": median(cpu_times[name]), "ms_all": times[name]}
        step["gflop"] = case.gflop()[name]
    ratios = {f"{above}/{below}": median(a / b for a, b in zip(times[above], times[below])) for above, below in RATIOS}
    return {"case": asdict(case), "steps": steps, "time_ratios": ratios}


def _over_ranks(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _traffic(layer: MoELayer, batch: Batch) -> dict[str, Any]:
    """Bytes that a rank sends to others, mean over ranks."""
    batch.tokens.grad = None
    output, forward = count(lambda: layer(batch.tokens)[0])
    _, backward = count(lambda: output.backward(batch.cotangent))
    ranks = _over_ranks((forward, backward))
    means = [sum(values) / len(ranks) for values in zip(*ranks)]
    return dict(zip(("sent_forward", "sent_backward"), means))


def _peak(layer: MoELayer, batch: Batch) -> int:
    """Most bytes alive during a step above those before it, of the rank that needs most."""
    batch.tokens.grad = None
    with PeakMemory(device()) as memory:
        run_step(layer, batch)
    return max(_over_ranks(memory.peak))


Times = dict[str, list[float]]
"""Milliseconds of each repeat, by variant."""


def _times(layers: dict[str, MoELayer], batch: Batch, repeats: int) -> tuple[Times, Times]:
    """Elapsed and processor time, of the rank that took most.

    The variants take turns within a repeat, and who begins rotates, so that noise of the machine hits all alike.
    """
    names = list(layers)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(_time_once(layers[name], batch))
    elapsed, cpu = ({name: [both[which] for both in all_] for name, all_ in taken.items()} for which in (0, 1))
    return _slowest_rank(elapsed), _slowest_rank(cpu)


def _slowest_rank(times: Times) -> Times:
    return {name: [max(ms) for ms in zip(*_over_ranks(ms_all))] for name, ms_all in times.items()}


def _time_once(layer: MoELayer, batch: Batch) -> tuple[float, float]:
    """Milliseconds by CUDA events (on a CPU the stand-in's, the host's clock), and of this process's threads."""
    batch.tokens.grad = None
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    dist.barrier()
    cpu_start = time.process_time()
    start.record()
    run_step(layer, batch)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end), (time.process_time() - cpu_start) * 1e3
