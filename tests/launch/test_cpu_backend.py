"""The CPU stand-in comes and goes without a trace."""

import os
import re
from pathlib import Path

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
    from megatron.core.fusions.fused_softmax import get_default_causal_mask
    from megatron.core.tensor_parallel import random as rng
    from megatron.core.transformer.moe.moe_layer import MoELayer
    from megatron.training.initialize import initialize_megatron

    try:
        rng._get_cuda_rng_state()
        generators = ""
    except (AssertionError, RuntimeError) as error:
        generators = str(error)
    makefile = os.path.join(os.path.dirname(dataset_utils.__file__), "Makefile")
    trainer = ""
    try:
        initialize_megatron()
    except AssertionError as error:
        trainer = str(error)
    return {
        "the wheel has no Makefile for its dataset helpers": not os.path.exists(makefile),
        "the generators are CUDA's": generators != "",
        "checkpoints ask for FP8 by default": rng.CheckpointWithoutOutput().fp8,
        "storage is shared by an extension": "load_inline" in rng._get_share_storage.__code__.co_names,
        "latent projections are Transformer Engine's": {"HAVE_TE", "TELinear"}
        <= set(MoELayer.__init__.__code__.co_names),
        "the causal mask is on a CUDA device": "cuda" in get_default_causal_mask.__code__.co_consts,
        "the trainer asserts CUDA": trainer == "Megatron requires CUDA.",
    }


def test_upstream_still_needs_the_stand_ins() -> None:
    assert all(run_rank(upstream).values()), "a stand-in in launch/cpu_backend.py is no longer needed: remove it"


def test_megatron_still_calls_it() -> None:
    """Every answer of `torch.cuda` is to a question of Megatron's; one that nobody asks any more can go."""
    import megatron.core
    import megatron.training

    folders = [Path(folder) for package in (megatron.core, megatron.training) for folder in package.__path__]
    source = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    asked = [symbol for symbol in cpu.answers() if symbol.startswith("torch")]
    calls = {
        symbol: re.sub(r"^torch(\.nn)?:\w+", "", symbol).replace(":", ".").replace("torch.", "") for symbol in asked
    }
    assert [symbol for symbol, call in calls.items() if not re.search(rf"{re.escape(call)}\b", source)] == []


def unequal(refused: bool) -> list[tuple[str, list[float]]]:
    """What becomes of splits in a tensor, and of rank r's r + 1 rows: gloo's refusal or the rows."""
    torch.distributed.init_process_group("gloo")
    if refused:
        cpu.deactivate()
    rank, ones = torch.distributed.get_rank(), torch.ones(2, dtype=torch.int64)
    exchanged, gathered = torch.zeros(2), [torch.zeros(1), torch.zeros(2)]
    found = []
    for call, result in (
        (lambda: torch.distributed.all_to_all_single(exchanged, torch.full((2,), rank + 1.0), ones, ones), [exchanged]),
        (lambda: torch.distributed.all_gather(gathered, torch.full((rank + 1,), rank + 1.0)), gathered),
    ):
        try:
            call()
            found.append(("", torch.cat(result).tolist()))
        except (RuntimeError, TypeError) as error:
            found.append((str(error), []))
    return found


def test_answers_what_gloo_refuses() -> None:
    assert run_ranks(2, unequal, False) == [[("", [1.0, 2.0]), ("", [1.0, 2.0, 2.0])]] * 2


def test_gloo_still_refuses_what_megatron_asks() -> None:
    for rank in run_ranks(2, unequal, True):
        assert all(refusal and not rows for refusal, rows in rank), rank
