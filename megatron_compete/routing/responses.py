"""How strongly an expert responds to a token: one scalar s from its raw output vector y.

H hidden size; leading axes are any.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32

Response = Callable[[Tensor], Tensor]
"""Maps raw expert outputs [..., H] of any float dtype to responses [...] in fp32; differentiable."""


def softplus_response(outputs: Tensor) -> Tensor:
    """s = mean_h log(1 + exp y_h): the response of CompeteSMoE (arXiv 2505.13380, section 3)."""
    return F.softplus(at_least_fp32(outputs)).mean(-1)


def l2_response(outputs: Tensor) -> Tensor:
    """s = ||y||_2: the response of the first CompeteSMoE paper (arXiv 2402.02526)."""
    return torch.linalg.vector_norm(at_least_fp32(outputs), dim=-1)


RESPONSES: dict[str, Response] = {"softplus": softplus_response, "l2": l2_response}
"""The responses that `--compete-response` can name, as `CompeteConfig.response` lists them."""
