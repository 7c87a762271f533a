"""Competition by utility (not in the paper): an expert is scored by what a larger share of it would change the loss.

T tokens, E experts, H hidden size.

The output of a token is o = sum_e p_e y_e over its experts, with p the router's softmax. To first order a larger share
of expert e changes the loss by u_e = y_e . dL/do: the more negative, the better. A normal step knows u for the selected
experts alone; with u of all experts the router's logits get the whole gradient of that sum.
"""

import torch
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32


def utility(outputs: Tensor, output_gradients: Tensor) -> Tensor:
    """u = y . dL/do, the first-order change of the loss with the share of an expert; negative where it helps.

    Args:
        outputs: raw expert outputs y [..., H].
        output_gradients: dL/do of the same tokens, [..., H].
    Returns:
        fp32 [...], without a factor: whatever scales the loss scales it too.
    """
    return torch.linalg.vecdot(at_least_fp32(outputs), at_least_fp32(output_gradients))


def dense_router_gradient(probs_TE: Tensor, utilities_TE: Tensor) -> Tensor:
    """dL/dz_j = p_j (u_j - sum_e p_e u_e), [T, E], of o = sum_e p_e y_e with p = softmax(z): the softmax's chain rule."""
    expected_T1 = (probs_TE * utilities_TE).sum(dim=-1, keepdim=True)
    return probs_TE * (utilities_TE - expected_T1)
