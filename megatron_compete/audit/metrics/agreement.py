"""How much two choices of experts have in common.

T tokens, E experts, K experts of a token.
"""

import torch
from torch import Tensor


def overlap(choices_TK: Tensor, others_TK: Tensor, experts: int) -> Tensor:
    """Share of each token's K experts that the other choice names too, fp32 [T]; order does not count.

    Two choices at random have K / E in common. With the choices of an earlier and of the last checkpoint it is the router
    saturation of OLMoE (arXiv 2409.02060, section 5.1).
    """
    named_TE = torch.zeros(len(others_TK), experts, dtype=torch.bool, device=others_TK.device)
    named_TE.scatter_(1, others_TK, True)
    return named_TE.gather(1, choices_TK).float().mean(1)
