#!/usr/bin/env python3
"""What router metrics cost: processor time of normal steps with metrics at every step, beside steps without.

    python benchmarks/metrics.py                        # two gloo ranks, 64 experts of width 64
    python benchmarks/metrics.py --hidden 512 --ffn 128

Kinds of step take turns in one process, and what is printed are medians of ratios within a round: `counts` are steps that
a writer logs (expert loads, one reduction over all ranks), `everything` those whose line is printed as well.
"""

import argparse
import os
import sys
import time
import warnings
from dataclasses import fields
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Case
from megatron_compete.launch.launchers import silence_cpu_warnings
from megatron_compete.launch.ports import free_port

NEVER = 10**9
PASSES = 8
"""Forward and backward passes of the layer in a step: its layers times its microbatches."""
KINDS = {"none": (NEVER, NEVER), "counts": (1, NEVER), "everything": (1, 1)}
"""--tensorboard-log-interval and --log-interval."""
SHAPE = Case(tokens=1024, hidden=128, ffn=64, experts=64, topk=8, ep=2)


def measure(rank: int, port: int, case: Case, rounds: int) -> None:
    """On one of the ranks; the first one prints."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(case.ep))  # fmt: skip
    torch.set_num_threads(1)
    silence_cpu_warnings()
    warnings.filterwarnings("ignore", message="full scope is deprecated")  # Megatron's own default
    from megatron_compete.launch import cpu_backend as cpu

    cpu.activate()
    from megatron.core import parallel_state
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from benchmarks.variants import build_variants, make_batch, run_step
    from megatron_compete.moe.metrics import LogIntervals, install_metrics

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(expert_model_parallel_size=case.ep)
    layer, batch = build_variants(case, torch.float32)["normal"], make_batch(case, torch.float32)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(rounds + 1):
        for kind in [*KINDS][turn % 3 :] + [*KINDS][: turn % 3]:
            install_metrics(layer.competition, case.experts, LogIntervals(*KINDS[kind]))
            torch.distributed.barrier()
            start = time.process_time()
            for _ in range(PASSES):
                run_step(layer, batch)
            get_moe_metrics_tracker().report(1.0, 1, num_layers=1, track_names=[])
            if turn:  # the first round warms up
                seconds[kind].append(time.process_time() - start)
    if rank == 0:
        for kind, found in seconds.items():
            ratio = median(one / none for one, none in zip(found, seconds["none"]))
            print(f"{kind:12} {1000 * median(found):8.2f} ms of processor time a step, {ratio:.3f} of a step without")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for field in fields(Case):
        if field.type is int or field.type == "int":
            parser.add_argument(f"--{field.name}", type=int, default=getattr(SHAPE, field.name))
    parser.add_argument("--rounds", type=int, default=40, help="timed rounds (default 40)")
    given = vars(parser.parse_args())
    rounds, case = given.pop("rounds"), Case(**given)
    print(str(case).replace("\n", " "))
    torch.multiprocessing.spawn(measure, (free_port(), case, rounds), nprocs=case.ep)


if __name__ == "__main__":
    main()
