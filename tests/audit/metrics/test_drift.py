import pytest
import torch

from megatron_compete.audit.metrics import drift
from megatron_compete.audit.metrics.drift import relative_drift
from megatron_compete.common.errors import CompeteError


@pytest.mark.parametrize("entries", [7, 2**18])
def test_drift_is_a_ratio_of_norms(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "ENTRIES", entries)
    generator = torch.Generator().manual_seed(0)
    weights, others = (torch.randn(3, 5, 4, generator=generator) for _ in range(2))
    expected = torch.linalg.vector_norm((weights - others).double()) / torch.linalg.vector_norm(others.double())
    assert relative_drift(weights, others) == pytest.approx(float(expected), rel=1e-6)
    assert relative_drift(weights.transpose(0, 2), others.transpose(0, 2)) == pytest.approx(float(expected), rel=1e-6)


def test_drift_at_its_ends() -> None:
    ones = torch.ones(4, 2)
    assert relative_drift(ones, ones) == 0.0
    assert relative_drift(ones * 0, ones) == 1.0
    assert relative_drift(ones * 3, ones) == 2.0
    assert relative_drift(ones, ones * 0) == 1.0
    assert relative_drift(ones * 0, ones * 0) == 0.0


def test_small_steps_of_bf16_weights_are_seen() -> None:
    others = torch.full((1000,), 1.0, dtype=torch.bfloat16)
    weights = others.clone()
    weights[0] += 2**-7
    assert relative_drift(weights, others) == pytest.approx(2**-7 / 1000**0.5)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(
        CompeteError, match=r"weights of \[4, 2\] cannot be compared to \[1, 2\]: compare checkpoints of"
    ):
        relative_drift(torch.ones(4, 2), torch.ones(1, 2))
