"""Router statistics against small cases worked out by hand."""

import math

import numpy as np
import pytest
import torch

from megatron_compete.routing.router_statistics import (
    coactivation,
    decision_margin,
    pack_choices,
    pair_counts,
    router_entropy,
    shared_choices,
    unpack_choices,
)


def test_margin_is_the_step_from_the_last_chosen_to_the_first_left_out() -> None:
    probs_TE = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(decision_margin(probs_TE, top_k=2), torch.tensor([0.15, 0.1]))
    assert decision_margin(probs_TE, top_k=4).tolist() == [0.0, 0.0]


def test_entropy_of_an_undecided_and_of_a_certain_router() -> None:
    probs_TE = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(router_entropy(probs_TE), torch.tensor([math.log(4), 0.0]))


def test_coactivation_of_couples_and_of_strangers() -> None:
    couples_TE = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
    assert pair_counts(couples_TE)[0].tolist() == [2, 2, 0, 0]
    assert coactivation(pair_counts(couples_TE)) == 1.0
    # Every pair once: an expert shares a third of its tokens with each other one, (K - 1) / (E - 1).
    every_TE = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]])
    assert coactivation(pair_counts(every_TE)) == pytest.approx(1 / 3)
    unused_TE = torch.tensor([[1, 1, 0]])
    assert coactivation(pair_counts(unused_TE)) == 1.0
    assert coactivation(torch.zeros(3, 3)) == 0.0


def test_choices_come_back_as_they_went() -> None:
    map_LNE = torch.rand(3, 37, 10, generator=torch.Generator().manual_seed(1)) < 0.2
    again = unpack_choices(pack_choices(map_LNE), (3, 37, 10))
    assert np.array_equal(again, map_LNE.numpy())
    assert shared_choices(again, again) == 1.0
    assert shared_choices(~again, again) == 0.0
