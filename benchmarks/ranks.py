"""The ranks that measure: this process's own under torchrun or on one GPU, else several gloo ranks on the CPU."""

import json
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case
from megatron_compete.launch.launchers import environment_defaults, silence_cpu_warnings
from megatron_compete.launch.ports import free_port

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """How every case is measured."""

    repeats: int
    dtype: str
    """A key of `DTYPES`."""
    grouped_gemm: bool
    fraction: float = 1.0
    """Of the tokens that compete; below 1 the naive step, which has no sample, is left out."""


def under_torchrun() -> bool:
    """Whether a launcher has started this process as one rank of several."""
    return "WORLD_SIZE" in os.environ


def measure_on_cpu(cases: list[Case], settings: Settings) -> list[dict[str, Any]]:
    """Results of `cases`, which share one expert parallel size, from as many fresh gloo ranks."""
    world = cases[0].ep
    os.environ.update(environment_defaults())  # read by the ranks, which import torch anew
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "results.json")
        arguments = (world, free_port(), cases, settings, found)
        torch.multiprocessing.spawn(_cpu_rank, arguments, nprocs=world)
        return json.loads(found.read_text())


def measure_here(cases: list[Case], settings: Settings) -> list[dict[str, Any]]:
    """Results of `cases` in this process, a rank of a job whose size is their expert parallel size."""
    silence_cpu_warnings()
    warnings.filterwarnings("ignore", message="full scope is deprecated")  # Megatron's own default
    if not torch.cuda.is_available():
        from megatron_compete.launch import cpu_backend as cpu

        cpu.activate()
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from benchmarks.measure import measure_case

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    parallel_state.initialize_model_parallel(expert_model_parallel_size=cases[0].ep)
    if torch.cuda.is_available():
        model_parallel_cuda_manual_seed(1)
    dtype = DTYPES[settings.dtype]
    try:
        return [measure_case(case, settings.repeats, dtype, settings.grouped_gemm, settings.fraction) for case in cases]
    finally:
        torch.distributed.destroy_process_group()


def be_the_only_rank() -> None:
    """Set what torchrun would set for a job of one rank."""
    _set_rank(0, 1, free_port())


def cpu_threads(world: int) -> int:
    """Threads of each rank, so that all ranks together use every core once."""
    return max(1, len(os.sched_getaffinity(0)) // world)


def _cpu_rank(rank: int, world: int, port: int, cases: list[Case], settings: Settings, results: Path) -> None:
    _set_rank(rank, world, port)
    torch.set_num_threads(cpu_threads(world))
    found = measure_here(cases, settings)
    if rank == 0:
        results.write_text(json.dumps(found))


def _set_rank(rank: int, world: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
