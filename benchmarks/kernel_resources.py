#!/usr/bin/env python3
"""What the scoring kernels take of an SM, compiled for Hopper on any machine: no GPU is needed.

    python benchmarks/kernel_resources.py                  # the tiles in use, for the benchmark's shapes
    python benchmarks/kernel_resources.py --candidates     # and the others of megatron_compete/moe/kernels/tiles.py
    python benchmarks/kernel_resources.py --response projection     # what competition by utility runs

Printed are registers a thread, bytes spilled, shared memory, and programs that fit an SM at a time by both; and which
tensor core and asynchronous copy instructions the code holds.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scoring_shapes import SHAPES
from megatron_compete.common.errors import CompeteError, run_command
from megatron_compete.moe.kernels import narrow, quantize, tiles, wide
from megatron_compete.moe.kernels.coverage import RESPONSE_NAMES, ExpertForm
from megatron_compete.moe.kernels.scorer import default_tiles

HOPPER = GPUTarget("cuda", 90, 32)
REGISTERS, SHARED, RESERVED = 65536, 227 * 1024, 1024
"""Of an SM: registers, bytes of shared memory that programs may use, and bytes that each program costs beside its own."""

TYPES = {
    **dict.fromkeys(("fc1_table", "fc2_table"), "*i64"),
    **dict.fromkeys(("token_scales", "hidden_scales", "fc1_scales", "fc2_scales", "scores", "partial", "scales"), "*fp32"),
    **dict.fromkeys(("num_tokens", "num_experts", "first_expert", "num_rows"), "i32"),
    "vectors": "*bf16",
    "values": "*fp8e4nv",
}  # fmt: skip
COLUMNS = ("kernel", "experts", "tiles", "registers", "spilled B", "shared KB", "programs / SM", "tensor cores")
SCALES = ("token_scales", "hidden_scales", "fc1_scales", "fc2_scales")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes."""

    kernel: str
    experts: str
    fp8: bool
    tiles: str
    threads: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    programs_per_sm: int
    instructions: tuple[str, ...]


def compiled(kernel: Any, constants: dict[str, Any], types: dict[str, str | None]) -> tuple[int, int, int, int, tuple[str, ...]]:  # fmt: skip
    """Threads, registers, spilled and shared bytes, and instructions of interest of a kernel for Hopper.

    Args:
        constants: compile-time arguments and launch options.
        types: Triton's types of the other arguments; None for an argument that is None.
    """
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    signature: dict[str, str] = {}
    values: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants or types[name] is None:
            signature[name], values[index,] = "constexpr", constants.get(name)
            continue
        signature[name] = types[name] or ""
        if signature[name].startswith("*"):
            attributes[index,] = [["tt.divisibility", 16]]
    program = triton.compile(ASTSource(kernel, signature, values, attributes), target=HOPPER, options=options)
    registers, stack, instructions = _read_binary(program.asm["cubin"])
    return 32 * program.metadata.num_warps, registers, stack, program.metadata.shared, instructions


def _read_binary(binary: bytes) -> tuple[int, int, tuple[str, ...]]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage, code = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    instructions = set(re.findall(r"\b(?:[HQ]GMMA|HMMA|LDGSTS)\.[.\w]*", code))
    return int(found[1]), int(found[2]), tuple(sorted(instructions))


def kernels(
    form: ExpertForm, fp8: bool, candidates: bool, response: str = "softplus"
) -> Iterator[tuple[Any, dict[str, Any], Any]]:
    """Kernel, its compile-time arguments, and its tiles, for experts of this form."""
    precision = torch.bfloat16
    chosen = default_tiles(form, fp8, response)
    if isinstance(chosen, tiles.NarrowTiles):
        held = narrow.held_columns(form)
        for sizes in (chosen, *(tiles.narrow_candidates(held, fp8)[1:] if candidates else ())):
            yield narrow.narrow_kernel, narrow.narrow_constants(form, response, precision, fp8, sizes), sizes
        return
    for gemm in (chosen.fc1, *(tiles.fc1_candidates(form.gated, fp8)[1:] if candidates else ())):
        yield wide.fc1_kernel, wide.fc1_constants(form, precision, fp8, gemm), gemm
    for gemm in (chosen.fc2, *(tiles.fc2_candidates(fp8)[1:] if candidates else ())):
        yield wide.fc2_kernel, wide.fc2_constants(form, response, precision, fp8, gemm), gemm


def measure(name: str, form: ExpertForm, fp8: bool, candidates: bool, response: str) -> Iterator[Resources]:
    """Resources of the kernels for experts of this form."""
    operand = "*fp8e4nv" if fp8 else "*bf16"
    for kernel, constants, sizes in kernels(form, fp8, candidates, response):
        hidden = "*bf16" if kernel is wide.fc1_kernel else operand
        unused = (() if fp8 else SCALES) + (() if response == "projection" else ("vectors",))
        types = TYPES | {"tokens": operand, "hidden": hidden} | dict.fromkeys(unused)
        threads, registers, spilled, shared, instructions = compiled(kernel, constants, types)
        fitting = min(_fitting_registers(registers, threads), SHARED // (shared + RESERVED))
        yield Resources(
            kernel.__name__, name, fp8, _sizes(sizes), threads, registers, spilled, shared, fitting, instructions
        )


def measure_quantization() -> Resources:
    """Resources of the quantisation of rows."""
    constants = {"COLUMNS": 4096, "PRECISION": triton.language.bfloat16, "num_warps": 4}
    constants |= {"BLOCK_R": quantize.BLOCK_ROWS, "BLOCK_C": quantize.BLOCK_COLUMNS}
    types = TYPES | {"source": "*bf16", "table": None}
    threads, registers, spilled, shared, instructions = compiled(quantize.quantize_kernel, constants, types)
    fitting = _fitting_registers(registers, threads)
    return Resources("quantize_kernel", "rows of 4096", True, "", threads, registers, spilled, shared, fitting, instructions)  # fmt: skip


def _fitting_registers(registers: int, threads: int) -> int:
    """Programs whose registers fit an SM; a thread gets a multiple of 8."""
    return REGISTERS // (-(-registers // 8) * 8 * threads)


def _sizes(sizes: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in asdict(sizes).items() if name != "group")


def print_resources(rows: list[Resources], response: str) -> None:
    table = Table(title=f"Scoring kernels on an SM of Hopper (sm_90), bf16 and e4m3, {response}")
    for column in COLUMNS:
        table.add_column(column)
    for row in rows:
        products = " ".join(name for name in row.instructions if "GMMA" in name)
        table.add_row(
            row.kernel, row.experts + (" e4m3" if row.fp8 else ""), row.tiles, str(row.registers), str(row.spilled_bytes),
            f"{row.shared_bytes / 1024:.0f}", str(row.programs_per_sm), products,
        )  # fmt: skip
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", action="store_true", help="all candidates of the table, not those in use alone")
    parser.add_argument(
        "--response", choices=sorted(RESPONSE_NAMES.values()), default="softplus", help="default softplus"
    )
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--shape", nargs="+", choices=names, default=names, help="which layers (default all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything found")
    arguments = parser.parse_args()
    if triton.knobs.runtime.interpret:
        raise CompeteError("TRITON_INTERPRET is set, and an interpreted kernel cannot be compiled: unset it")
    shapes = [shape for shape in SHAPES if shape.name in arguments.shape]
    rows = [
        row
        for shape in shapes
        for fp8 in (False, True)
        for row in measure(shape.name, shape.form, fp8, arguments.candidates, arguments.response)
    ]
    rows.append(measure_quantization())
    print_resources(rows, arguments.response)
    if arguments.json:
        arguments.json.write_text(json.dumps({"triton": triton.__version__, "kernels": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    run_command(main)
