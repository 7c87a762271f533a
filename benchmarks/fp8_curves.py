#!/usr/bin/env python3
"""Loss curves of a small competing model in bf16 and in FP8, on real text.

    python benchmarks/fp8_curves.py --json curves.json --figure curves.png        # on a GPU: bf16, and FP8 in 3 recipes
    python benchmarks/fp8_curves.py --steps 20 --runs fp32 bf16                   # on a CPU

The text is the running interpreter's standard library, one token a byte, so nothing but Megatron is needed to read it.
Every run is the real trainer with the same seed and the same batches. On a GPU the runs share it, since nothing is
timed. What follows `--` is handed to every run's trainer.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.summary import hardware, write_report
from megatron_compete.common.errors import CompeteError, run_command
from megatron_compete.launch.launchers import environment_defaults
from megatron_compete.launch.ports import free_port
from megatron_compete.report.scalars import read_scalars

ROOT = Path(__file__).resolve().parent.parent
RUNS: dict[str, str] = {
    "fp32": "",
    "bf16": "--bf16",
    "delayed": "--bf16 --fp8-format hybrid --fp8-recipe delayed --fp8-amax-history-len 16 --fp8-amax-compute-algo max",
    "tensorwise": "--bf16 --fp8-format hybrid --fp8-recipe tensorwise",
    "blockwise": "--bf16 --fp8-format hybrid --fp8-recipe blockwise",
}
"""Trainer's flags, by name of the run."""
ON_GPU = ("bf16", "delayed", "tensorwise", "blockwise")
ON_CPU = ("fp32", "bf16")
MODEL = """
--num-layers 6 --hidden-size 512 --num-attention-heads 8 --ffn-hidden-size 512 --moe-ffn-hidden-size 512
--num-experts 16 --moe-router-topk 2 --moe-router-dtype fp32 --moe-grouped-gemm --moe-token-dispatcher-type alltoall
--seq-length 512 --max-position-embeddings 512 --position-embedding-type rope --swiglu --normalization RMSNorm
--disable-bias-linear --untie-embeddings-and-output-weights --hidden-dropout 0 --attention-dropout 0
--init-method-std 0.02 --micro-batch-size 16 --global-batch-size 16 --lr 1e-3 --min-lr 1e-4 --lr-decay-style cosine
--lr-warmup-fraction 0.05 --clip-grad 1.0 --weight-decay 0.1 --adam-beta2 0.95 --compete-rate 0.2
--compete-max-active-layers 2
"""
"""It competes more often than a real run, so that 300 steps hold about 60 competitions of each layer."""
SMALL = """
--num-layers 2 --hidden-size 32 --num-attention-heads 4 --ffn-hidden-size 32 --moe-ffn-hidden-size 32 --num-experts 4
--seq-length 64 --max-position-embeddings 64 --micro-batch-size 4 --global-batch-size 4
"""
"""Over `MODEL`, on a CPU."""
WINDOW = 20
"""Steps over which a curve is averaged before it is compared."""
TEXT_BYTES = 8_000_000


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our flags, and the trainer's after `--`."""
    tokens = sys.argv[1:]
    at = tokens.index("--") if "--" in tokens else len(tokens)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--runs", nargs="+", choices=RUNS, help="the first is what the others are compared with")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds until runs are ended (default 600)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write losses and differences")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves (matplotlib)")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep what the trainers printed")
    return parser.parse_args(tokens[:at]), tokens[at + 1 :]


def write_bytes_dataset(prefix: Path) -> None:
    """The standard library's modules as Megatron's dataset, a document each, one token a byte."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    from megatron_compete.data.stdlib_corpus import stdlib_texts

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    left = TEXT_BYTES
    for text in stdlib_texts():
        document = text.encode()
        builder.add_document(np.frombuffer(document, dtype=np.uint8).astype(np.uint16), [len(document)])
        left -= len(document)
        if left <= 0:
            break
    builder.finalize(f"{prefix}.idx")


def command(run: str, steps: int, data: Path, logs: Path, extra: list[str]) -> list[str]:
    """The trainer's command line of a run."""
    cuda = torch.cuda.is_available()
    flags = [*MODEL.split(), *([] if cuda else SMALL.split()), *RUNS[run].split()]
    if cuda:
        from megatron_compete.training.arguments import installed

        if not installed("fused_weight_gradient_mlp_cuda"):
            flags.append("--no-gradient-accumulation-fusion")
    else:
        flags.remove("--moe-grouped-gemm")
    flags += f"--data-path {data} --split 100,0,0 --tokenizer-type NullTokenizer --vocab-size 256".split()
    flags += (
        f"--train-iters {steps} --eval-iters 0 --log-interval 10 --tensorboard-log-interval 1 --num-workers 1".split()
    )
    flags += ["--make-vocab-size-divisible-by", "64", "--tensorboard-dir", str(logs), *extra]
    return [sys.executable, "-m", "megatron_compete.training.pretrain", *flags]


def train_all(arguments: argparse.Namespace, runs: list[str], extra: list[str], folder: Path) -> dict[str, list[float]]:
    """Losses of every run that came to its end, by name; the runs go on together on a GPU, else one after the other."""
    data = folder / "text"
    write_bytes_dataset(data)
    logs = arguments.logs or folder
    logs.mkdir(parents=True, exist_ok=True)
    started, deadline = [], time.monotonic() + arguments.timeout
    for run in runs:
        own = folder / run
        log = logs / f"{run}.log"
        ranks = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}  # fmt: skip
        environment = os.environ | environment_defaults() | {name: str(value) for name, value in ranks.items()}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        line = [*command(run, arguments.steps, data, own, extra), "--data-cache-path", str(folder / f"cache-{run}")]
        with log.open("w") as stream:
            process = subprocess.Popen(line, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        started.append((run, process))
        if not torch.cuda.is_available():
            _wait(process, deadline)
    for _, process in started:
        _wait(process, deadline)
    finished = [run for run, process in started if process.returncode == 0]
    for run in runs:
        if run not in finished:
            print(f"{run} failed: {_last_lines(logs / f'{run}.log')}", flush=True)
    return {run: _losses(folder / run) for run in finished}


def _wait(process: subprocess.Popen, deadline: float) -> None:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_lines(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-3:])


def _losses(folder: Path) -> list[float]:
    by_step = read_scalars(folder)["lm loss"]
    return [by_step[step] for step in sorted(by_step)]


def smoothed(losses: list[float], window: int = WINDOW) -> np.ndarray:
    """Running means over `window` steps; as many fewer values, one at least."""
    window = min(window, len(losses))
    return np.convolve(losses, np.full(window, 1 / window), mode="valid")


def largest_difference(losses: list[float], reference: list[float]) -> float:
    """Largest relative difference of two smoothed curves of the same length."""
    one, other = smoothed(losses), smoothed(reference)
    return float(np.max(np.abs(one - other) / other))


def draw(path: Path, losses: dict[str, list[float]]) -> None:
    """The smoothed curves, and below them their difference from the first."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    reference, *others = losses
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=(2, 1))
    for run, values in losses.items():
        curve = smoothed(values)
        steps = np.arange(len(values) - len(curve) + 1, len(values) + 1)
        above.plot(steps, curve, label=run, linewidth=1)
        if run in others:
            base = smoothed(losses[reference])
            below.plot(steps, 100 * (curve - base) / base, label=run, linewidth=1)
    above.set_ylabel(f"loss, mean of {WINDOW} steps")
    above.legend()
    below.set_ylabel(f"over {reference}, %")
    below.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    arguments, extra = parse_arguments()
    if arguments.steps < 1:
        raise CompeteError(f"--steps {arguments.steps}: give 1 or more")
    runs = arguments.runs or list(ON_GPU if torch.cuda.is_available() else ON_CPU)
    with tempfile.TemporaryDirectory() as folder:
        losses = train_all(arguments, runs, extra, Path(folder))
    if runs[0] not in losses:
        raise CompeteError(f"the run {runs[0]}, with which the others are compared, failed: see the lines above")
    reference = losses[runs[0]]
    found: dict[str, Any] = {
        "hardware": hardware(), "reference": runs[0], "steps": arguments.steps, "window": WINDOW, "losses": losses,
        "failed": [run for run in runs if run not in losses],
        "largest_difference": {run: largest_difference(losses[run], reference) for run in losses if run != runs[0]},
    }  # fmt: skip
    for run, difference in found["largest_difference"].items():
        print(f"{run}: at most {difference:.3%} from {runs[0]}, over {arguments.steps} steps")
    if arguments.json:
        write_report(arguments.json, found)
    if arguments.figure:
        draw(arguments.figure, losses)
    if found["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    run_command(main)
