"""Similarities against loops over pairs."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.audit.metrics import similarity
from megatron_compete.audit.metrics.similarity import (
    cosines,
    cosines_between,
    effective_rank,
    off_diagonal_mean,
    output_cosines,
)


def test_mean_over_pairs_leaves_the_diagonal_out() -> None:
    assert off_diagonal_mean(torch.tensor([[9.0, 1.0, 2.0], [3.0, 9.0, 4.0], [5.0, 6.0, 9.0]])) == 3.5
    assert off_diagonal_mean(torch.ones(1, 1)) == 0.0


@pytest.mark.parametrize("entries", [5, 64, 2**18])
def test_cosines_of_rows(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ENTRIES", entries)
    rows_EN = torch.randn(6, 333, generator=torch.Generator().manual_seed(0))
    rows_EN[2] = rows_EN[1] * -3
    rows_EN[4] = 0.0
    expected = torch.stack([F.cosine_similarity(row.double(), rows_EN.double(), dim=1) for row in rows_EN])
    found_EE = cosines(rows_EN)
    assert found_EE.dtype == torch.float64
    torch.testing.assert_close(found_EE, expected, rtol=0, atol=1e-6)
    assert found_EE[1, 2].item() == pytest.approx(-1.0, abs=1e-6)
    assert found_EE[4].tolist() == [0.0] * 6
    torch.testing.assert_close(cosines(rows_EN.double()), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(cosines_between(rows_EN[:2], rows_EN[1:]), expected[:2, 1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_cosines_do_not_depend_on_lengths(scale: float) -> None:
    rows_EN = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    scaled = rows_EN * torch.tensor([1.0, scale, 1.0, scale])[:, None]
    torch.testing.assert_close(cosines(scaled), cosines(rows_EN), rtol=0, atol=1e-6)
    outputs = (rows_EN[:, None], scaled[:, None])
    torch.testing.assert_close(output_cosines(outputs[1]), output_cosines(outputs[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_cosines_are_summed_over_tokens(dtype: torch.dtype) -> None:
    outputs_ETH = torch.randn(5, 150, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    outputs_ETH[3, 7] = 0.0
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for token in outputs_ETH.double().unbind(1):
        for one in range(5):
            for other in range(5):
                expected[one, other] += F.cosine_similarity(token[one], token[other], dim=0)
    found_EE = output_cosines(outputs_ETH)
    assert found_EE.dtype == torch.float64
    rounding = 150 * (1e-12 if dtype == torch.float64 else 1e-6)
    torch.testing.assert_close(found_EE, expected, rtol=0, atol=rounding)
    assert found_EE[3, 3].item() == pytest.approx(149, abs=rounding)
    chunks = sum(output_cosines(chunk) for chunk in outputs_ETH.split(40, dim=1))
    torch.testing.assert_close(chunks, found_EE, rtol=0, atol=rounding)


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7.0)
    assert effective_rank(torch.outer(torch.arange(1.0, 5.0), torch.ones(9))) == pytest.approx(1.0, abs=1e-6)
    assert effective_rank(torch.zeros(3, 4)) == 0.0
    shares = (0.5, 0.25, 0.25)
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    assert effective_rank(rotation @ torch.diag(torch.tensor([2.0, 1.0, 1.0]).double())) == pytest.approx(expected)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 1000))
def test_bounds(experts: int, entries: int, seed: int) -> None:
    rows_EN = torch.randn(experts, entries, generator=torch.Generator().manual_seed(seed))
    found_EE = cosines(rows_EN)
    assert torch.equal(found_EE, found_EE.T) and (found_EE.abs() <= 1).all()
    torch.testing.assert_close(found_EE.diagonal(), torch.ones(experts).double())
    rank = effective_rank(rows_EN)
    assert 1 - 1e-9 <= rank <= min(experts, entries) + 1e-9
    assert effective_rank(rows_EN.T * 5) == pytest.approx(rank)
