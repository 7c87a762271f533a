#!/usr/bin/env python3
"""The scoring pass on a CPU beside the matrix products that it cannot do without.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/scoring_cpu.py

One rank's experts on N tokens by Megatron's modules (`plain`) and by products on their weights (`direct`), by utility and by
responses, as multiples of the time of bare `torch.mm` of the same shapes. Processor time; medians of ratios within a repeat.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from megatron.core import parallel_state

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import Case
from benchmarks.ranks import be_the_only_rank
from benchmarks.variants import build_variants
from megatron_compete.launch import cpu_backend
from megatron_compete.moe.direct import DirectScorer
from megatron_compete.moe.expert_weights import expert_parameters
from megatron_compete.moe.scoring import PlainScorer
from megatron_compete.routing.responses import scored_softplus
from megatron_compete.routing.utility import utility

TOKENS = (30, 123, 512, 4096)
SHAPES = ((64, 8, 128), (16, 2, 1024))
"""E, K, F; H = 512."""


def products(experts: torch.nn.Module, tokens_TH: torch.Tensor) -> None:
    """What no way to score can leave out."""
    for fc1, fc2 in expert_parameters(experts):
        hidden = torch.mm(tokens_TH, fc1.t())
        torch.mm(hidden[:, : fc2.shape[1]], fc2.t())


def ways(layer: torch.nn.Module, tokens_TH: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The passes by name, the bare products first."""
    gradients_TH = torch.randn_like(tokens_TH)
    found: dict[str, Callable[[], object]] = {"products": lambda: products(layer.experts, tokens_TH)}
    for kind, reduction, vectors in (("utility", utility, (gradients_TH,)), ("response", scored_softplus, ())):
        plain = PlainScorer(layer.experts, reduction, layer.groups)
        direct = DirectScorer(layer.config, layer.experts, reduction, layer.groups)
        for name, scorer in (("plain", plain), ("direct", direct)):
            found[f"{kind}, {name}"] = lambda scorer=scorer, vectors=vectors: scorer.start()(tokens_TH, *vectors)
    return found


@torch.no_grad()
def ratios(found: dict[str, Callable[[], object]], repeats: int, rounds: int) -> dict[str, float]:
    """Processor time of each way over that of the products."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for repeat in range(repeats + 1):
        for name, run in found.items():
            started = time.process_time()
            for _ in range(rounds):
                run()
            if repeat:  # the first warms caches
                seconds[name].append(time.process_time() - started)
    least = seconds.pop("products")
    return {name: median(mine / bare for mine, bare in zip(values, least)) for name, values in seconds.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    be_the_only_rank()
    torch.set_num_threads(1)
    cpu_backend.activate()
    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    columns: list[str] = []
    for experts, topk, ffn in SHAPES:
        layer = build_variants(Case(512, 512, ffn, experts, topk, ep=1), torch.float32)["utility"]
        for tokens in TOKENS:
            row = ratios(ways(layer, torch.randn(tokens, 512)), repeats, rounds=max(1, 512 // tokens))
            if not columns:
                columns = list(row)
                print(f"| experts | tokens | {' | '.join(columns)} |")
                print("|---" * (2 + len(columns)) + "|")
            print(
                f"| E={experts} F={ffn} | {tokens} | {' | '.join(f'{row[name]:.2f}x' for name in columns)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
