"""Winners and weights."""

import torch

from megatron_compete.routing.rule import RouterRule
from megatron_compete.routing.winners import (
    choose_winners,
    competition_weights,
    overlap,
    same_favourite,
    winners_map,
)


def test_winners_are_the_strongest_in_ascending_order() -> None:
    responses = torch.tensor([[0.1, 0.9, 0.5, 0.7], [4.0, 1.0, 3.0, 2.0]])
    assert choose_winners(responses, RouterRule(2)).tolist() == [[1, 3], [0, 2]]


def test_winners_map_marks_k_experts_in_each_row() -> None:
    winners = choose_winners(torch.rand(50, 8), RouterRule(3))
    routing_map = winners_map(winners, 8)
    assert routing_map.sum(1).eq(3).all()
    assert routing_map.nonzero()[:, 1].view(50, 3).equal(winners)


def test_weights_sum_to_one_and_follow_the_quotient_rule() -> None:
    responses = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)
    weights = competition_weights(responses)
    torch.testing.assert_close(weights.sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.autograd.gradcheck(competition_weights, (responses + 0.1,))


def test_overlap_counts_common_experts() -> None:
    routing_map = torch.tensor([[True, True, False, False], [False, False, True, True]])
    assert overlap(routing_map, torch.tensor([[0, 2], [2, 3]])).tolist() == [0.5, 1.0]


def test_weights_sum_to_what_they_are_given() -> None:
    responses, totals = torch.rand(6, 3, dtype=torch.float64), torch.rand(6, 1, dtype=torch.float64)
    torch.testing.assert_close(competition_weights(responses, totals).sum(1, keepdim=True), totals)
    torch.testing.assert_close(competition_weights(responses, 2.5), 2.5 * competition_weights(responses))
    assert torch.equal(competition_weights(responses, 1.0), responses / responses.sum(1, keepdim=True))  # to the bit


def test_favourites_are_compared_among_those_that_may_be_chosen() -> None:
    probs = torch.tensor([[0.4, 0.1, 0.3, 0.2]] * 3)
    routing_map = torch.tensor([[True, True, False, False], [False, False, True, True], [False, False, True, True]])
    scores = torch.tensor([[3.0, 1.0, 0.0, 9.0], [9.0, 0.0, 2.0, 1.0], [9.0, 0.0, 1.0, 2.0]])
    winners = torch.tensor([[0, 1], [2, 3], [2, 3]])
    assert same_favourite(probs, routing_map, scores, winners).tolist() == [1.0, 1.0, 0.0]
