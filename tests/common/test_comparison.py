"""A comparison fails on what it cannot compare, where `max`, `<=` and `all` would pass."""

import math
from typing import Any

import pytest
import torch

from megatron_compete.common.comparison import check_finite, largest_difference, relative_difference
from megatron_compete.common.errors import CompeteError

NAN, INF = math.nan, math.inf


def test_differences() -> None:
    assert largest_difference([1.0, 2.0], [1.5, 2.25], "x") == 0.5
    assert largest_difference(torch.ones(2, 2), torch.ones(2, 2), "x") == 0
    one, other = torch.tensor([256.0, 1.0], dtype=torch.bfloat16), torch.tensor([256.0, 1.0078125])
    assert largest_difference(one, other, "x") == 0.0078125  # not rounded to bf16
    assert largest_difference(torch.tensor([2**40 + 1]), torch.tensor([2**40]), "x") == 1
    assert relative_difference([1.0, -5.0], [1.0, -4.0], "x") == 0.25


@pytest.mark.parametrize("measure", [largest_difference, relative_difference])
@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([0.0, NAN], [0.0, 1.0], "loss: 1 of 2 values are infinite or not numbers"),
        ([0.0, 1.0], [0.0, NAN], "loss: 1 of 2 values are infinite or not numbers"),
        ([NAN, NAN], [NAN, NAN], "loss: 2 of 2 values"),
        ([INF, 1.0], [INF, 1.0], "loss: 1 of 2 values"),
        ([-INF, 1.0], [INF, 1.0], "loss: 1 of 2 values"),
        ([], [], "loss: there is nothing to compare"),
        (torch.ones(0, 3), torch.ones(0, 3), "loss: there is nothing to compare"),
        (torch.ones(1), torch.ones(3), r"loss: the shapes \(1,\) and \(3,\) cannot be compared"),
    ],
    ids=str,
)
def test_what_cannot_be_compared(measure: Any, one: Any, other: Any, message: str) -> None:
    with pytest.raises(CompeteError, match=message):
        measure(one, other, "loss")


def test_nothing_is_relative_to_zeros() -> None:
    with pytest.raises(CompeteError, match="nothing but zeros is wanted"):
        relative_difference(torch.zeros(3), torch.zeros(3), "gradient")


def test_finite() -> None:
    check_finite(torch.zeros(0), "x")
    check_finite(torch.tensor([1, 2]), "x")
    with pytest.raises(CompeteError, match="x: 2 of 3 values"):
        check_finite(torch.tensor([NAN, 1.0, -INF]), "x")
