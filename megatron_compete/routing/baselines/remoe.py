"""ReMoE: a ReLU is the gate, and an adaptive L1 penalty keeps K experts a token on average.

Source: Wang et al. 2024, "ReMoE: Fully Differentiable Mixture-of-Experts with ReLU Routing", arXiv 2412.14711.
T tokens, E experts, K the budget of experts per token, L layers.
"""

import torch
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32

COEFFICIENT_RANGE = (1e-20, 1e20)
"""A coefficient that left it would never come back: in fp32 it becomes 0 or infinite."""


def relu_weights(logits_TE: Tensor) -> Tensor:
    """Weights of the experts in a token's output: ReLU(x W); those above 0 are the token's experts."""
    return logits_TE.relu()


def l1_regularization(
    weights_TE: Tensor, tokens_per_expert_E: Tensor, num_tokens: Tensor | int, topk: int, num_layers: int
) -> Tensor:
    """Balanced L1 norm of one layer's weights: 1 / (L T) sum_t sum_e f_e w_te, f_e = E / (K T) * tokens of e.

    The model's regularisation is the sum over its layers. An expert with many tokens is pressed harder, so the penalty
    balances the load as well.

    Args:
        weights_TE: `relu_weights` of the tokens that count, at least 0.
        tokens_per_expert_E, num_tokens: of the whole microbatch, which may be spread over more ranks than this; without
            gradient. The sum over those ranks is then the microbatch's.
        topk: K.
        num_layers: L, MoE layers of the model.
    Returns:
        fp32 scalar, before the coefficient; 0 without tokens.
    """
    num_experts = weights_TE.shape[-1]
    tokens = torch.as_tensor(num_tokens, dtype=torch.float32, device=weights_TE.device).clamp_min(1.0)
    pressure_E = num_experts / (topk * tokens) * tokens_per_expert_E.float()
    return (at_least_fp32(weights_TE).sum(dim=0) * pressure_E).sum() / (num_layers * tokens)


def next_coefficient(coefficient: Tensor, chosen_share: Tensor, topk: int, num_experts: int, factor: float) -> Tensor:
    """The penalty's coefficient of the next step: lambda * alpha^sign((1 - K/E) - S).

    Args:
        coefficient: lambda of the step that ends.
        chosen_share: 1 - S: pairs of token and expert with a weight above 0, as a share of all pairs of all layers.
        factor: alpha, above 1.
    Returns:
        lambda of the next step: larger where tokens took more than K experts on average, smaller where fewer.
    """
    excess = chosen_share - topk / num_experts
    return (coefficient * factor ** excess.sign()).clamp(*COEFFICIENT_RANGE)
