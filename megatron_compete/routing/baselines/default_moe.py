"""Default MoE: experts that a token does not reach answer with the mean of what they answered to others.

Source: Panda, Baherwani, Sarwar, Therien, Chakraborty, Goldstein 2025, "Dense Backpropagation Improves Training for Sparse
Mixture-of-Experts", arXiv 2504.12463. T tokens, E experts, K experts a token, H hidden size.

With p the softmax of the router's logits over all experts, A_t the K experts with the largest p of token t, and d_e the
default vector of expert e,

    o_t = sum_{e in A_t} p_te y_e(x_t) + sum_{e not in A_t} p_te d_e,

so every expert's probability has a gradient, at the price of one product with a matrix [E, H]. The default vectors follow
the mean output of each expert, over the tokens that did reach it, and carry no gradient.
"""

from typing import Any

import torch
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32


def chosen_experts(probs_TE: Tensor, topk: int) -> Tensor:
    """The K experts of each token with the largest probabilities, bool [T, E]."""
    best_TK = probs_TE.topk(topk, dim=-1).indices
    return torch.zeros_like(probs_TE, dtype=torch.bool).scatter_(1, best_TK, True)


def default_part(others_TE: Tensor, defaults_EH: Tensor) -> Tensor:
    """sum_e p_e d_e over the experts that were not chosen, fp32 [T, H].

    Args:
        others_TE: p of the experts that were not chosen, 0 for those that were.
    """
    return at_least_fp32(others_TE) @ at_least_fp32(defaults_EH)


def with_gradient_of(output_TH: Tensor, part_TH: Tensor) -> Tensor:
    """`output_TH`, bit for bit, whose gradient also goes to `part_TH` as if it had been added: the router then learns from
    the default vectors, and nothing of them is in the output."""
    added: Tensor = _GradientOf.apply(output_TH, part_TH)
    return added


class _GradientOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output_TH: Tensor, part_TH: Tensor) -> Tensor:
        ctx.dtype = part_TH.dtype
        return output_TH.view_as(output_TH)

    @staticmethod
    def backward(ctx: Any, gradient_TH: Tensor) -> tuple[Tensor, Tensor]:
        return gradient_TH, gradient_TH.to(ctx.dtype)


def next_defaults(defaults_EH: Tensor, sums_EH: Tensor, tokens_E: Tensor, decay: float) -> Tensor:
    """d <- decay d + (1 - decay) mean, for experts that had a token; those of the others stay.

    Args:
        sums_EH: raw outputs summed over an expert's tokens.
        tokens_E: these tokens.
    """
    tokens_E1 = tokens_E.unsqueeze(-1)
    means_EH = (sums_EH / tokens_E1.clamp_min(1)).to(defaults_EH.dtype)
    return torch.where(tokens_E1 > 0, decay * defaults_EH + (1 - decay) * means_EH, defaults_EH)
