"""Choices of experts and scores as a router makes them, for tests."""

import torch
from torch import Tensor


def draw_choices(tokens: int, experts: int, top_k: int, seed: int = 0) -> Tensor:
    """Distinct experts of each token, in any order, some more often than others."""
    generator = torch.Generator().manual_seed(seed)
    wanted_E = torch.rand(experts, generator=generator) * 2
    return (torch.rand(tokens, experts, generator=generator) + wanted_E).topk(top_k, dim=1).indices


def draw_scores(tokens: int, experts: int, seed: int = 0) -> Tensor:
    """A softmax for each token."""
    return torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed)).softmax(-1)
