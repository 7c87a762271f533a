"""Reductions run in fp32, or in fp64 where the values are."""

import pytest
import torch

from megatron_compete.routing.precision import at_least_fp32


@pytest.mark.parametrize(
    ("given", "taken"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)  # fmt: skip
def test_values_are_widened_and_never_narrowed(given: torch.dtype, taken: torch.dtype) -> None:
    values = torch.tensor([1.0, 0.1]).to(given)
    widened = at_least_fp32(values)
    assert widened.dtype == taken and widened.to(given).equal(values)
