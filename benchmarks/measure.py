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
from megatron_compete.config import CompeteConfig

BATCHES = 3
"""Inputs that take turns."""

RATIOS = (("competing", "normal"), ("utility", "normal"), ("utility", "competing"), ("naive", "competing"))
"""Which variant is divided by which."""


def measure_case(
    case: Case, repeats: int, dtype: torch.dtype, grouped_gemm: bool, fraction: float = 1.0
) -> dict[str, Any]:
    """The whole measurement of one case; every rank calls it and gets the same result.

    Returns:
        `case`, `steps` (per variant: ms, cpu_ms, ms_all, gflop, and in bytes sent_forward, sent_backward, peak; one
        that needs more memory than there is left out) and `time_ratios` (per pair of `RATIOS`, the median of the
        ratios within a repeat).
    """
    small = case.for_check()
    check_equal(build_variants(small, torch.float32, grouped_gemm, to_check=True), make_batch(small, torch.float32))
    compete = CompeteConfig(rate=1.0, max_active_layers=1, token_fraction=fraction)
    layers = build_variants(case, dtype, grouped_gemm, compete)
    if fraction < 1.0:
        del layers["naive"]
    batches = [make_batch(case, dtype, seed) for seed in range(BATCHES)]
    steps = {name: found for name, layer in layers.items() if (found := _bytes(layer, batches[0])) is not None}
    times, cpu_times = _times({name: layers[name] for name in steps}, batches, repeats)
    for name, step in steps.items():
        step |= {"ms": median(times[name]), "cpu_ms": median(cpu_times[name]), "ms_all": times[name]}
        step["gflop"] = case.gflop(fraction)[name]
    ratios = {
        f"{above}/{below}": median(a / b for a, b in zip(times[above], times[below]))
        for above, below in RATIOS
        if above in steps and below in steps
    }
    return {"case": asdict(case), "steps": steps, "time_ratios": ratios}


def _bytes(layer: MoELayer, batch: Batch) -> dict[str, Any] | None:
    """Bytes sent and bytes alive in a step; None where the device has not enough of them, on whatever rank."""
    try:
        found = _traffic(layer, batch) | {"peak": _peak(layer, batch)}
    except torch.OutOfMemoryError:
        if dist.get_world_size() > 1:  # the others wait in a collective
            raise
        found = None
    if found is None:
        batch.tokens.grad = None
        torch.cuda.empty_cache()
    return found


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


def _times(layers: dict[str, MoELayer], batches: list[Batch], repeats: int) -> tuple[Times, Times]:
    """Elapsed and processor time, of the rank that took most.

    The variants take turns within a repeat, and who begins rotates, so that noise of the machine hits all alike; so do
    the inputs, so that none is still in a cache.
    """
    names = list(layers)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(_time_once(layers[name], batches[repeat % len(batches)]))
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
