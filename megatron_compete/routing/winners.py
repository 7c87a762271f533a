"""Who wins a token, and how much of its output each winner supplies."""

import torch
from torch import Tensor


def choose_winners(responses_TE: Tensor, num_winners: int) -> Tensor:
    """The `num_winners` experts with the strongest responses, in ascending order of expert.

    Ascending order is that of the rows which Megatron's all-to-all dispatcher brings back for a token.

    Returns:
        Expert indices [T, K], int64.
    """
    return responses_TE.topk(num_winners, dim=-1).indices.sort(dim=-1).values


def winners_map(winners_TK: Tensor, num_experts: int) -> Tensor:
    """The winners as Megatron's routing map: bool [T, E], K true entries in every row."""
    routing_map = torch.zeros(winners_TK.shape[0], num_experts, dtype=torch.bool, device=winners_TK.device)
    return routing_map.scatter_(1, winners_TK, True)


def competition_weights(responses_TK: Tensor) -> Tensor:
    """Share of each winner in its token's output: s_k / sum_k s_k (CompeteSMoE, section 3).

    Args:
        responses_TK: responses of the winners, fp32, positive.
    Returns:
        Weights [T, K] that sum to 1 over K; gradient flows to the responses.
    """
    return responses_TK / responses_TK.sum(dim=-1, keepdim=True)


def overlap(routing_map_TE: Tensor, winners_TK: Tensor) -> Tensor:
    """Share of each token's winners that the router would have chosen too, fp32 [T] in [0, 1]."""
    return routing_map_TE.gather(1, winners_TK).float().mean(dim=-1)
