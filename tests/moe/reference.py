"""A competing step with dense tensors and plain autograd, in whatever precision its weights have."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.config import CompeteConfig


@dataclass
class Weights:
    """All experts of one layer: router [E, H], fc1 [E, 2F, H] (gate over up), fc2 [E, H, F]."""

    router: Tensor
    fc1: Tensor
    fc2: Tensor

    @classmethod
    def random(cls, experts: int, hidden: int, ffn: int, seed: int = 0) -> "Weights":
        random = torch.Generator().manual_seed(seed)
        shapes = {"router": (experts, hidden), "fc1": (experts, 2 * ffn, hidden), "fc2": (experts, hidden, ffn)}
        return cls(**{name: torch.randn(shape, generator=random) * 0.3 for name, shape in shapes.items()})

    def double(self) -> "Weights":
        return Weights(*(w.double().requires_grad_() for w in (self.router, self.fc1, self.fc2)))


def expert_outputs(tokens: Tensor, weights: Weights) -> Tensor:
    """Every expert on every token, [T, E, H]."""
    gate, up = torch.einsum("th,efh->tef", tokens, weights.fc1).chunk(2, dim=-1)
    return torch.einsum("tef,ehf->teh", F.silu(gate) * up, weights.fc2)


def competing_step(tokens: Tensor, weights: Weights, k: int, config: CompeteConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, H], the auxiliary loss of the step, and the winners [T, K], by the formulas."""
    y = expert_outputs(tokens, weights)
    experts = y.shape[1]
    s = F.softplus(y).mean(-1) if config.response == "softplus" else y.norm(dim=-1)
    winners = s.topk(k).indices.sort().values
    y_w = torch.stack([y[t, winners[t]] for t in range(len(tokens))])
    s_w = s.gather(1, winners)
    output = ((s_w / s_w.sum(1, keepdim=True)).unsqueeze(-1) * y_w).sum(1)

    p, q = (tokens @ weights.router.T).softmax(-1), s.detach().softmax(-1)
    distance = (p - q) ** 2
    distillation = distance.mean() + config.distill_winner_coeff * distance.gather(1, winners).mean()
    cosine = F.cosine_similarity(y_w.unsqueeze(1), y_w.unsqueeze(2), dim=-1)
    diversity = (cosine.sum((1, 2)) - k).mean() / (k * (k - 1))
    losers_detached = s.detach().scatter(1, winners, s_w)
    m = losers_detached.softmax(-1).mean(0)
    loss = (
        config.distill_coeff * distillation
        + config.diversity_coeff * diversity
        + config.response_balance_coeff * (m * m.log()).sum()
    )
    assert experts == weights.router.shape[0]
    return output, loss, winners
