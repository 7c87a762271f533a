"""Which experts win a token, and the share of each in the token's output (CompeteSMoE, arXiv 2505.13380, section 3).

T tokens, E experts, K winners a token.
"""

import torch
from torch import Tensor

from megatron_compete.routing.rule import RouterRule


def choose_winners(responses_TE: Tensor, rule: RouterRule) -> Tensor:
    """The K experts with the largest responses that the router may choose, in ascending order of expert.

    The paper's top-K of the responses; `rule` keeps to the router's expert groups, which the paper does not have.
    Ascending order is that of the rows which Megatron's all-to-all dispatcher brings back for a token.

    Returns:
        Expert indices [T, K], int64.
    """
    return rule.best(responses_TE).sort(dim=-1).values


def winners_map(winners_TK: Tensor, num_experts: int) -> Tensor:
    """The winners as Megatron's routing map: bool [T, E], K true entries in every row."""
    routing_map = torch.zeros(winners_TK.shape[0], num_experts, dtype=torch.bool, device=winners_TK.device)
    return routing_map.scatter_(1, winners_TK, True)


def competition_weights(responses_TK: Tensor, weight_sum: Tensor | float = 1.0) -> Tensor:
    """Weight of each winner in its token's output: S * s_k / sum_k s_k (CompeteSMoE, section 3, with S = 1).

    Args:
        responses_TK: responses of the winners, fp32, positive.
        weight_sum: S, what a normal step's weights of the token sum to, `RouterRule.weight_sum`.
    Returns:
        Weights [T, K] that sum to S over K; gradient flows to the responses.
    """
    return weight_sum * (responses_TK / responses_TK.sum(dim=-1, keepdim=True))


def overlap(routing_map_TE: Tensor, winners_TK: Tensor) -> Tensor:
    """Share of each token's winners that the router would have chosen too, fp32 [T] in [0, 1]; a metric."""
    return routing_map_TE.gather(1, winners_TK).float().mean(dim=-1)


def same_favourite(probs_TE: Tensor, routing_map_TE: Tensor, scores_TE: Tensor, winners_TK: Tensor) -> Tensor:
    """Whether the best of a token's winners is the best of the experts that the router chooses, fp32 [T], 0 or 1; a
    metric.

    Args:
        probs_TE, routing_map_TE: what the router ranks by, and its choice.
        scores_TE, winners_TK: the same of the competition.
    """
    favourite_T1 = probs_TE.masked_fill(~routing_map_TE, -torch.inf).argmax(dim=-1, keepdim=True)
    return (favourite_T1.squeeze(-1) == first_winners(scores_TE, winners_TK)).float()


def first_winners(scores_TE: Tensor, winners_TK: Tensor) -> Tensor:
    """The winner of each token with the highest score, int64 [T]."""
    return winners_TK.gather(1, scores_TE.gather(1, winners_TK).argmax(dim=-1, keepdim=True)).squeeze(-1)
