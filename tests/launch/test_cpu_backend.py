"""The CPU stand-in comes and goes without a trace."""

import os

import pytest
import torch

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch import cpu_backend as cpu
from tests.ranks import run_rank, run_ranks


def answers() -> dict:
    """Runs with the stand-in active."""
    start, end = torch.cuda.Event(), torch.cuda.Event()
    start.record()
    end.record()
    return {
        "device": torch.zeros(2, device="cuda").device.type,
        "to": torch.zeros(2).to("cuda").device.type,
        "cuda": torch.nn.Linear(2, 2).cuda().weight.device.type,
        "type": torch.zeros(2).type(),
        "count": torch.cuda.device_count(),
        "elapsed": end.elapsed_time(start) <= 0.0,
        "memory": torch.cuda.memory_stats()["allocated_bytes.all.current"],
    }


def test_answers_on_the_cpu() -> None:
    assert run_rank(answers) == {
        "device": "cpu", "to": "cpu", "cuda": "cpu", "type": "torch.cuda.FloatTensor", "count": 1, "elapsed": True,
        "memory": 0,
    }  # fmt: skip


def undone() -> bool:
    before = torch.zeros(1).type()
    cpu.activate()
    cpu.deactivate()
    assert not cpu.is_active() and before == "torch.cuda.FloatTensor"
    assert torch.zeros(1).type() == "torch.FloatTensor"
    assert torch.cuda.device_count() == 0
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")
    return True


def test_deactivate_takes_everything_back() -> None:
    assert run_rank(undone)


def test_never_active_where_cuda_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(CompeteError, match="this one has it"):
        cpu.activate()
    assert not cpu.is_active()


def upstream() -> dict[str, bool]:
    """What Megatron itself still lacks on a CPU; when an entry turns False its stand-in can go."""
    cpu.deactivate()
    import megatron.core.datasets.utils as dataset_utils
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.training.initialize import initialize_megatron

    from tests.moe.layouts import Layout, transformer_config

    makefile = os.path.join(os.path.dirname(dataset_utils.__file__), "Makefile")
    norm, trainer = "", ""
    try:
        WrappedTorchNorm(transformer_config(Layout(tp=2, world=2)), 8)
    except AssertionError as error:
        norm = str(error)
    try:
        initialize_megatron()
    except AssertionError as error:
        trainer = str(error)
    return {
        "the wheel has no Makefile for its dataset helpers": not os.path.exists(makefile),
        "the torch norm refuses sequence parallelism": "sequence parallel" in norm,
        "the trainer asserts CUDA": trainer == "Megatron requires CUDA.",
    }


def test_upstream_still_needs_the_stand_ins() -> None:
    assert all(run_rank(upstream).values()), "a stand-in in launch/cpu_backend.py is no longer needed: remove it"


def gathered_rows() -> tuple[list[float], str]:
    """Rank r gives r + 1 rows; with the stand-in, and what gloo says without."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    parts = [torch.zeros(1), torch.zeros(2)]
    torch.distributed.all_gather(parts, torch.full((rank + 1,), float(rank + 1)))
    cpu.deactivate()
    try:
        torch.distributed.all_gather([torch.zeros(1), torch.zeros(2)], torch.ones(rank + 1))
    except RuntimeError as error:
        return torch.cat(parts).tolist(), str(error)
    return torch.cat(parts).tolist(), ""


def test_gathers_unequal_parts_which_gloo_still_refuses() -> None:
    for rows, refusal in run_ranks(2, gathered_rows):
        assert rows == [1.0, 2.0, 2.0]
        assert "invalid tensor size" in refusal
