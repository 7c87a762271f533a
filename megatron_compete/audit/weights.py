"""How alike experts and routers are by their weights, in one model and between two."""

import torch
from torch import Tensor

from megatron_compete.audit.layers import MoeLayer
from megatron_compete.audit.metrics.drift import relative_drift
from megatron_compete.audit.metrics.matching import match_experts
from megatron_compete.audit.metrics.similarity import cosines, cosines_between, effective_rank, off_diagonal_mean
from megatron_compete.audit.metrics.use import top_pairs
from megatron_compete.audit.results import Against, Experts


def flat_experts(layer: MoeLayer) -> Tensor:
    """[E, numbers of an expert]: a copy."""
    return torch.cat(list(layer.expert_weights()), dim=1)


def geometry(layer: MoeLayer, output_similarity_EE: Tensor) -> tuple[Experts, dict[str, Tensor]]:
    """Numbers of one layer, and the matrices [E, E] behind them by name."""
    matrices = {
        "output_similarity": output_similarity_EE,
        "weight_similarity": cosines(flat_experts(layer)).cpu(),
        "router_similarity": cosines(layer.router_weight).cpu(),
    }
    found = Experts(
        **{name: off_diagonal_mean(matrix) for name, matrix in matrices.items()},
        router_rank=effective_rank(layer.router_weight.float().cpu()),
        closest_pairs=top_pairs(output_similarity_EE, symmetric=True),
    )
    return found, matrices


def against(layer: MoeLayer, other: MoeLayer, same_choice: float, changed_tokens: float) -> Against:
    """One layer beside the same one of another checkpoint."""
    experts, others = flat_experts(layer).cpu(), flat_experts(other).cpu()
    matched = match_experts(cosines_between(experts, others))
    return Against(
        same_choice,
        changed_tokens,
        router_drift=relative_drift(layer.router_weight.cpu(), other.router_weight.cpu()),
        expert_drift=relative_drift(experts, others),
        matched=matched,
        moved=sum(own != place for place, own in enumerate(matched)),
    )
