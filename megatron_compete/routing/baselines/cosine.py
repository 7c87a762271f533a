"""Cosine routers: XMoE and its perturbed form.

T tokens, E experts, H hidden size, D routing dimensions.
"""

from torch import Tensor

SMALLEST_NORM = 1e-4
"""Norms below count as this much in a plain cosine, whose gradient grows as their inverse."""


def cosine_logits(projected_TD: Tensor, experts_ED: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits of XMoE's router: s_te = cos(W x_t, e_e) / tau (Chi et al. 2022, arXiv 2204.09179).

    Args:
        projected_TD: tokens in the routing dimensions, W x; any leading dimensions.
        experts_ED: embeddings of the experts.
        temperature: tau, above 0.
    Returns:
        [T, E] between -1 / tau and 1 / tau, differentiable in all.
    """
    tokens_TD = projected_TD / projected_TD.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
    experts_ED = experts_ED / experts_ED.norm(dim=-1, keepdim=True).clamp_min(SMALLEST_NORM)
    return tokens_TD @ experts_ED.T / temperature


def perturbed_cosine_logits(
    projected_TD: Tensor, experts_ED: Tensor, temperature: float | Tensor, perturbation: float
) -> Tensor:
    """Logits of the perturbed cosine router: <W x, e> / ((|W x| + p) (|e| + p)) / tau.

    Source: Nguyen et al. 2024, arXiv 2405.14131, whose two perturbations are one number here. Unlike the cosine it
    keeps a trace of both norms: the logit of a short token or expert is nearer to 0.

    Args:
        projected_TD: tokens in the routing dimensions, W x; any leading dimensions.
        experts_ED: embeddings of the experts.
        temperature, perturbation: tau, p; both above 0.
    Returns:
        [T, E] between -1 / tau and 1 / tau, differentiable in all.
    """
    tokens_TD = projected_TD / (projected_TD.norm(dim=-1, keepdim=True) + perturbation)
    experts_ED = experts_ED / (experts_ED.norm(dim=-1, keepdim=True) + perturbation)
    return tokens_TD @ experts_ED.T / temperature
