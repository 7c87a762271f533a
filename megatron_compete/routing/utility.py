"""Competition by utility (not in the paper): an expert is scored by what a larger share of it would change the loss.

T tokens, E experts, H hidden size.

The output of a token is o = sum_e p_e y_e over its experts, with p the router's probabilities. To first order a larger
share of expert e changes the loss by u_e = y_e . dL/do: the more negative, the better. A normal step knows u for the
selected experts alone; with u of all experts the router's logits get the whole gradient of that sum.
"""

import torch
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32
from megatron_compete.routing.rule import RouterRule


def utility(outputs: Tensor, output_gradients: Tensor) -> Tensor:
    """u = y . dL/do, the first-order change of the loss with the share of an expert; negative where it helps.

    Args:
        outputs: raw expert outputs y [..., H].
        output_gradients: dL/do of the same tokens, [..., H].
    Returns:
        fp32 [...], without a factor: whatever scales the loss scales it too.
    """
    return torch.linalg.vecdot(at_least_fp32(outputs), at_least_fp32(output_gradients))


def dense_router_gradient(logits_TE: Tensor, utilities_TE: Tensor, rule: RouterRule) -> Tensor:
    """Gradient of the router's logits through the sum of all experts, fp32 [T, E].

    o = F sum_e p_e y_e, with p the router's probabilities and F its scaling factor, gives

        dL/dz_j = F s'_j / sum_e s_e * (u_j - sum_e p_e u_e)

    and for a softmax s'_j / sum_e s_e = p_j. Where a weight is no share of anything (one sigmoid score, K = 1),
    o = F sum_e s_e y_e gives F s'_j u_j.
    """
    slopes_TE = rule.scaling_factor * rule.slopes(logits_TE)
    if not rule.shares:
        return slopes_TE * utilities_TE
    probs_TE = rule.probabilities(logits_TE)
    expected_T1 = (probs_TE * utilities_TE).sum(dim=-1, keepdim=True)
    return slopes_TE / rule.scores(logits_TE).sum(dim=-1, keepdim=True) * (utilities_TE - expected_T1)
