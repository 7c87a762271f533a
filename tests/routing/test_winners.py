"""Winners and weights."""

import torch

from megatron_compete.routing.winners import choose_winners, competition_weights, overlap, winners_map


def test_winners_are_the_strongest_in_ascending_order() -> None:
    responses = torch.tensor([[0.1, 0.9, 0.5, 0.7], [4.0, 1.0, 3.0, 2.0]])
    assert choose_winners(responses, 2).tolist() == [[1, 3], [0, 2]]


def test_winners_map_marks_k_experts_in_each_row() -> None:
    winners = choose_winners(torch.rand(50, 8), 3)
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
