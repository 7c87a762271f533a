"""Matching of experts whose order is known, and against all orders."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.audit.metrics.matching import match_experts
from megatron_compete.audit.metrics.similarity import cosines_between
from megatron_compete.common.errors import CompeteError


def test_experts_in_another_order_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    others_EN = torch.randn(16, 40, generator=generator)
    order = torch.randperm(16, generator=generator)
    rows_EN = others_EN[order] + 0.5 * torch.randn(16, 40, generator=generator)
    assert match_experts(cosines_between(rows_EN, others_EN)) == order.tolist()


def test_each_expert_is_matched_once() -> None:
    """Both are most like the other's 0; the sum decides."""
    assert match_experts(torch.tensor([[0.9, 0.8], [0.9, 0.1]])) == [1, 0]


def test_experts_that_are_all_alike_have_not_moved() -> None:
    generator = torch.Generator().manual_seed(0)
    row_N = torch.randn(300, generator=generator)
    rounding = 1e-8 * torch.randn(12, 12, generator=generator, dtype=torch.float64)
    rows_EN = row_N.expand(12, -1)
    assert match_experts(cosines_between(rows_EN, rows_EN) + rounding) == list(range(12))


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(CompeteError, match="cannot be matched: weights of a checkpoint hold NaN or infinity"):
        match_experts(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_no_order_is_better(experts: int, seed: int) -> None:
    similarity_EE = torch.rand(experts, experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = match_experts(similarity_EE)
    assert sorted(found) == list(range(experts))

    def total(order: tuple[int, ...] | list[int]) -> float:
        return sum(float(similarity_EE[row, column]) for row, column in enumerate(order))

    assert total(found) >= max(map(total, permutations(range(experts)))) - experts * 1e-6
