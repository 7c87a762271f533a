"""The forward step's answers to what Megatron and its flags ask of it."""

import argparse
from typing import Any

import pytest
import torch

from megatron_compete.training import batches

ARGS = argparse.Namespace(
    logits_load_dir=None, check_for_nan_in_loss_and_grad=False, check_for_spiky_loss=False, seq_length=4
)
BATCH: dict[str, Any] = dict.fromkeys(batches.KEYS) | {
    "tokens": torch.zeros(1, 8, dtype=torch.int64),
    "loss_mask": torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]]),
    "cu_seqlens": torch.tensor([[0, 3, 4, 8]], dtype=torch.int32),
    "max_seqlen": torch.tensor([4], dtype=torch.int32),
}


class Model(torch.nn.Module):
    """Says what it was given."""

    def forward(self, *inputs: Any, **named: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return "output", inputs, named

    def build_schedule_plan(self, *inputs: Any, **named: Any) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        return "plan", inputs, named


@pytest.fixture(autouse=True)
def trainer(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    args = argparse.Namespace(**vars(ARGS))
    timer = argparse.Namespace(start=lambda: None, stop=lambda: None)
    monkeypatch.setattr(batches, "get_args", lambda: args)
    monkeypatch.setattr(batches, "get_timers", lambda: lambda *a, **k: timer)
    monkeypatch.setattr(batches, "get_batch", lambda *a: BATCH)
    monkeypatch.setattr(batches, "update_seqlen_stats_from_cu_seqlens", lambda real: None)
    return args


def test_packed_sequences_reach_the_model() -> None:
    (what, inputs, named), _ = batches.forward_step(None, Model())
    assert what == "output" and inputs[0] is BATCH["tokens"]
    packed = named["packed_seq_params"]
    assert packed.qkv_format == "thd" and packed.cu_seqlens_q.tolist() == [0, 3, 4, 8] and packed.max_seqlen_kv == 4
    assert batches.packed_sequences(dict.fromkeys(batches.KEYS), 4) is None


def test_a_plan_is_made_where_megatron_interleaves_layers() -> None:
    (what, inputs, named), loss = batches.forward_step(None, Model(), return_schedule_plan=True)
    assert what == "plan" and inputs[0] is BATCH["tokens"] and set(named) == {"labels", "loss_mask"}
    assert loss(torch.ones(1, 8))[0] == 7


def test_distillation_has_the_loss_where_a_teacher_is_named(trainer: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    trainer.logits_load_dir = "somewhere"
    asked: list[Any] = []

    def teacher(mask: Any, output: Any, model: Any) -> Any:
        asked.append((mask, output, model))
        return torch.tensor(3.0), torch.tensor(7), {"total loss": torch.tensor([3.0, 7.0])}

    monkeypatch.setattr(batches, "_distillation", lambda: teacher)
    model, output = Model(), torch.ones(1, 8)
    _, loss = batches.forward_step(None, model)
    assert loss(output)[2].keys() == {"total loss"}
    assert asked[0][0] is BATCH["loss_mask"] and asked[0][1] is output and asked[0][2] is model
