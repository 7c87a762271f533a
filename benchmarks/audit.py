#!/usr/bin/env python3
"""What the parts of an audit cost beside a plain evaluation pass over the same text, in one process on a CPU.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/audit.py

Processor time per token as multiples of the evaluation's; medians of ratios within a repeat. Memory is the largest amount
above the model that a part held (Linux: resident size, each part in a process of its own).
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_compete.audit.competition import CompetitionPart
from megatron_compete.audit.layers import find_layers
from megatron_compete.audit.measures import TARGETS
from megatron_compete.audit.model import Model, Source
from megatron_compete.audit.scores import ScoreFunctions
from megatron_compete.audit.text import Text
from megatron_compete.audit.use import UsePart

LAYERS, LENGTH, BATCH = 2, 256, 2
PARTS = ("evaluation", "use", "competition", "regret")


def build() -> Model:
    """Random weights: H = 512, 64 experts of 256, 8 of a token."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=8192, hidden_size=512, num_hidden_layers=LAYERS, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
        num_experts=64, num_experts_per_tok=8, moe_intermediate_size=256, intermediate_size=512, max_position_embeddings=LENGTH,
        norm_topk_prob=True,
    )  # fmt: skip
    module = Qwen3MoeForCausalLM(config).eval().requires_grad_(False)
    return Model(Source(Path("random")), module, find_layers(module, "random"), torch.device("cpu"))


def passes(model: Model) -> dict[str, Callable[[], object]]:
    """One batch of each part."""
    text = Text(torch.randint(0, 8192, (BATCH, LENGTH + 1)), torch.arange(BATCH) % 2, ["one", "two"])
    functions = ScoreFunctions()

    def evaluate() -> None:
        with torch.no_grad():
            model.losses(text.ids_SL)

    return {
        "evaluation": evaluate,
        "use": lambda: UsePart(model, text, functions, BATCH, keep_choices=False).step(0),
        "competition": lambda: CompetitionPart(model, text, functions, BATCH, BATCH, 0).step(0),
        "regret": lambda: CompetitionPart(model, text, functions, BATCH, BATCH, BATCH).step(0),
    }


def resident(line: str) -> int:
    """Bytes that /proc/self/status tells of: VmRSS now, VmHWM at most so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(row.split()[1] for row in status.splitlines() if row.startswith(f"{line}:")))


def peak_growth(part: str) -> int:
    """Bytes that a part holds at most above the model and a small forward pass."""
    torch.set_num_threads(1)
    model = build()
    with torch.no_grad():
        model.losses(torch.zeros(1, 9, dtype=torch.int64))
    found = passes(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far, that of the building, is forgotten
    before = resident("VmRSS")
    found[part]()
    return resident("VmHWM") - before


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    found = passes(build())
    for repeat in range(repeats + 1):
        for part, run in found.items():
            started = time.process_time()
            run()
            if repeat:  # the first warms caches
                seconds[part].append(time.process_time() - started)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = dict(zip(PARTS, pool.map(peak_growth, PARTS, chunksize=1)))
    print(
        f"{LAYERS} MoE layers, H=512 E=64 K=8 F=256, {BATCH} x {LENGTH} tokens; regret: {LAYERS} x {len(TARGETS)} passes"
    )
    print("| part | processor time | memory above the model |")
    print("|---|---|---|")
    for part in PARTS:
        ratio = median(mine / plain for mine, plain in zip(seconds[part], seconds["evaluation"]))
        print(f"| {part} | {ratio:.2f}x | {memory[part] / 1e6:.0f} MB ({memory[part] / memory['evaluation']:.2f}x) |")


if __name__ == "__main__":
    main()
