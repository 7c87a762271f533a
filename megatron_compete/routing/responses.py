"""How strongly an expert responds to a token: one scalar s from its raw output vector y.

H hidden size; leading axes are any.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32

Response = Callable[[Tensor], Tensor]
"""Maps raw expert outputs [..., H] of any float dtype to responses [...] in fp32; differentiable."""

FACTORS = 16
"""Channels whose product is taken before its logarithm. It fits fp32 while their mean response is below 5.5, and its
rounding, 1e-6 at most, is that of a sum in fp32."""


def softplus_response(outputs: Tensor) -> Tensor:
    """s = mean_h log(1 + exp y_h): the response of CompeteSMoE (arXiv 2505.13380, section 3)."""
    return F.softplus(at_least_fp32(outputs)).mean(-1)


def scored_softplus(outputs: Tensor) -> Tensor:
    """`softplus_response` as the scoring pass takes it: on a CPU from products of exponentials, to rounding the same.

    For the scoring pass alone: what is computed twice under recomputation must be the same bits with and without gradient.
    """
    values = at_least_fp32(outputs)
    if values.is_cpu and values.dtype == torch.float32 and values.shape[-1] % FACTORS == 0:
        return _mean_of_products(values)
    return softplus_response(outputs)


def _mean_of_products(values: Tensor) -> Tensor:
    """`softplus_response` in a third of a CPU's time: sum_h log(1 + exp y_h) = log prod_h (1 + exp y_h).

    One logarithm for `FACTORS` channels, as in the fused kernels. Where a product overflows the sum is taken.
    """
    products = values.exp().add_(1.0).unflatten(-1, (FACTORS, -1)).prod(-2)
    responses = products.log_().sum(-1).div_(values.shape[-1])
    fits = responses.isfinite()
    return responses if fits.all() else responses.where(fits, F.softplus(values).mean(-1))


def l2_response(outputs: Tensor) -> Tensor:
    """s = ||y||_2: the response of the first CompeteSMoE paper (arXiv 2402.02526)."""
    return torch.linalg.vector_norm(at_least_fp32(outputs), dim=-1)


RESPONSES: dict[str, Response] = {"softplus": softplus_response, "l2": l2_response}
"""The responses that `--compete-response` can name, as `CompeteConfig.response` lists them."""

SCORED: dict[Any, Response] = {softplus_response: scored_softplus}
"""Forms for the scoring pass, where a response has another there."""
