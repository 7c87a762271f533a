"""A microbatch of pictures and text, from the loader's tensors to the model's arguments."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_compete.moe import loss_tokens
from megatron_compete.training.vlm import batches
from megatron_compete.training.vlm.batches import forward_step, packed_sequences

BATCH = {
    "tokens": torch.tensor([[3, 5, 6], [5, 6, 0]]),
    "labels": torch.tensor([[-100, 6, 1], [6, -100, -100]]),
    "loss_mask": torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]),
    "position_ids": torch.arange(3).expand(2, 3),
    "images": torch.zeros(1, 3, 4, 4),
    "num_image_tiles": torch.tensor([1], dtype=torch.int32),
}


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize(("first", "last"), [(True, True), (True, False), (False, False), (False, True)])
def test_a_stage_is_given_what_it_needs(
    first: bool, last: bool, per_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures go to the first stage, labels to the last; every stage knows how many tokens the loss counts."""
    counts: list[float] = []
    monkeypatch.setattr(batches, "set_loss_tokens", lambda count: counts.append(float(count)))
    monkeypatch.setattr(batches, "get_args", lambda: SimpleNamespace(calculate_per_token_loss=per_token))
    monkeypatch.setattr(
        batches, "get_timers", lambda: lambda *_, **__: SimpleNamespace(start=lambda: None, stop=lambda: None)
    )
    monkeypatch.setattr(batches, "count_microbatch", lambda: None)
    monkeypatch.setattr(batches.mpu, "is_pipeline_first_stage", lambda: first)
    monkeypatch.setattr(batches.mpu, "is_pipeline_last_stage", lambda: last)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, **_: tensor)
    given: dict[str, Any] = {}

    def model(
        images: Any, tokens: Any, position_ids: Any, attention_mask: Any, **more: Any
    ) -> tuple[torch.Tensor, None]:
        given.update(images=images, tokens=tokens, position_ids=position_ids, attention_mask=attention_mask, **more)
        return torch.zeros(2, 3), None

    forward_step(iter([BATCH]), model)  # type: ignore[arg-type]
    assert (given["images"] is not None) == first and (given["labels"] is not None) == last
    assert given["attention_mask"] is None and given["packed_seq_params"] is None
    for name in ("tokens", "loss_mask", "num_image_tiles"):
        assert given[name] is BATCH[name]
    assert counts == ([3.0] if per_token else [])
    assert batches.set_loss_tokens is not loss_tokens.set_loss_tokens


def test_packed_conversations_are_kept_apart() -> None:
    packed = packed_sequences(BATCH | {"cu_seqlens": torch.tensor([[0, 4, 9]]), "max_seqlen": torch.tensor([5])})
    assert packed is not None and packed.qkv_format == "thd"
    assert packed.cu_seqlens_q.tolist() == packed.cu_seqlens_kv.tolist() == [0, 4, 9]
    assert packed.max_seqlen_q == packed.max_seqlen_kv == 5
