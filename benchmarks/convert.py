"""What a conversion costs: memory at its peak, and time beside copying the same files.

    python benchmarks/convert.py [--gigabytes 2] [--repeats 3] [--folder DIR]

Writes a Mixtral of random bf16 weights as a Megatron checkpoint, exports it, imports the export, and compares the bits.
Each conversion runs in a process of its own, whose peak resident memory the kernel counts from its start (VmHWM), with
Python and torch in it; its time is the conversion's own, without the start of Python. Conversion and copy are both
timed until their files are on the disk, each from a disk at rest. Where the disk is slow or shared, it is the larger
part of both: --folder /dev/shm leaves it out, and is the harder comparison. Only the ratios mean something elsewhere.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megatron_compete.checkpoint.families import FAMILIES, Dimensions
from megatron_compete.checkpoint.megatron_writer import Chunk, write_release
from megatron_compete.checkpoint.reader import TorchDistCheckpoint

SIZES: dict[str, Any] = {
    "hidden_size": 1024, "num_attention_heads": 16, "group_query_attention": True, "num_query_groups": 4,
    "ffn_hidden_size": 2816, "moe_ffn_hidden_size": 2816, "num_experts": 8, "moe_router_topk": 2, "vocab_size": 32000,
    "max_position_embeddings": 4096, "seq_length": 4096, "normalization": "RMSNorm", "swiglu": True,
    "add_bias_linear": False, "position_embedding_type": "rope", "untie_embeddings_and_output_weights": True,
    "tokenizer_type": "NullTokenizer",
}  # fmt: skip
BLOCK = 16 * 2**20
MEASURED = """
import sys
from megatron_compete.cli.convert import main
main(sys.argv[1:])
status = open("/proc/self/status").read()
print("peak", status.split("VmHWM:")[1].split()[0])
"""


def random_chunks(arguments: dict[str, Any]) -> Iterator[Chunk]:
    """Every tensor of the model, random when it is written."""
    d = Dimensions.from_arguments(arguments, padded_vocab=arguments["vocab_size"])
    for rule in FAMILIES["mixtral"].tensors(d):
        assert rule.slot is not None
        place = rule.slot.canonical(d)[0]
        make = partial(torch.randn, rule.shape, dtype=torch.bfloat16)
        yield Chunk(place.key, place.at, place.stack, rule.shape, torch.bfloat16, make)


def write_random(folder: Path, gigabytes: float) -> int:
    """A checkpoint of about that size; its bytes."""
    one, two = (sum(chunk.nbytes for chunk in random_chunks(SIZES | {"num_layers": layers})) for layers in (1, 2))
    layers = max(1, round((gigabytes * 1e9 - (2 * one - two)) / (two - one)))
    chunks = list(random_chunks(SIZES | {"num_layers": layers}))
    folder.mkdir()
    write_release(folder, SIZES | {"num_layers": layers}, chunks)
    return sum(chunk.nbytes for chunk in chunks)


def copy(source: Path, target: Path) -> float:
    """Seconds to copy all files and have them on the disk."""
    start = time.monotonic()
    for path in sorted(source.rglob("*")):
        if path.is_file():
            goal = target / path.relative_to(source)
            goal.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as reader, goal.open("wb") as writer:
                shutil.copyfileobj(reader, writer, BLOCK)
    return time.monotonic() - start + settle(target)


def settle(folder: Path) -> float:
    """Seconds until the files of a folder are on the disk."""
    start = time.monotonic()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return time.monotonic() - start


def convert(to: str, source: Path, target: Path) -> tuple[float, float]:
    """Seconds of the conversion until its files are on the disk, and its peak resident memory in bytes."""
    command = [sys.executable, "-c", MEASURED, "--to", to, "--checkpoint", str(source), "--output", str(target)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds = float(said.split(" s\n")[0].rsplit(" ", 1)[1])
    return seconds + settle(target), int(said.split("peak ")[1].split()[0]) * 1024


def same_bits(one: Path, other: Path) -> bool:
    """Whether every tensor of the first checkpoint is in the second, bit for bit."""
    a, b = TorchDistCheckpoint(one / "release"), TorchDistCheckpoint(other / "release")
    layers = a.arguments["num_layers"]
    indices = {key: [(i,) for i in range(layers)] if key.startswith("decoder.layers.") else [()] for key in a.tensors}
    return all(a.read(key, index).equal(b.read(key, index)) for key in a.tensors for index in indices[key])


def measure(folder: Path, gigabytes: float, repeats: int) -> None:
    """Print the ratios."""
    weights = write_random(folder / "megatron", gigabytes)
    table: dict[str, list[tuple[float, float]]] = {"export": [], "import": []}
    for _ in range(repeats):
        for name, to, source, target in (("export", "hf", "megatron", "hf"), ("import", "megatron", "hf", "back")):
            for old in ("copy", target):
                shutil.rmtree(folder / old, ignore_errors=True)
            os.sync()  # what was written before is not waited for in what is measured now
            copying = copy(folder / source, folder / "copy")
            seconds, peak = convert(to, folder / source, folder / target)
            table[name].append((copying / seconds, peak))
    if not same_bits(folder / "megatron", folder / "back"):
        raise AssertionError("exported and imported again, the checkpoint is another")
    print(f"checkpoint of {weights / 1e9:.2f} GB, bf16; {repeats} repeats; there and back bit for bit the same")
    print(f"{'':<8}{'throughput / copying (median, worst)':<40}{'peak memory / checkpoint (worst)'}")
    for name, rows in table.items():
        speeds = [speed for speed, _ in rows]
        peak = max(peak for _, peak in rows)
        speed = f"{statistics.median(speeds):.2f}, {min(speeds):.2f}"
        print(f"{name:<8}{speed:<40}{peak / weights:.2f} ({peak / 1e9:.2f} GB)")


def main() -> None:
    """Measure in a folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where the files go, four times the size (default: a temporary one)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options.gigabytes, options.repeats)


if __name__ == "__main__":
    main()
