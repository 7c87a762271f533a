"""Overlap against Python's sets."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_compete.audit.metrics.agreement import overlap
from tests.audit.metrics.draws import draw_choices


def test_overlap_does_not_see_the_order() -> None:
    one_TK = torch.tensor([[0, 1], [0, 1], [0, 1]])
    other_TK = torch.tensor([[1, 0], [1, 2], [3, 2]])
    assert overlap(one_TK, other_TK, 4).tolist() == [1.0, 0.5, 0.0]


def test_random_choices_have_k_of_e_in_common() -> None:
    drawn = [torch.rand(20_000, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    one_TK, other_TK = (scores.topk(4, dim=1).indices for scores in drawn)
    assert abs(float(overlap(one_TK, other_TK, 16).mean()) - 4 / 16) < 0.005


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.data())
def test_overlap_is_that_of_sets(tokens: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    one_TK, other_TK = (draw_choices(tokens, experts, top_k, data.draw(st.integers(0, 1000))) for _ in range(2))
    expected = [len({*one} & {*other}) / top_k for one, other in zip(one_TK.tolist(), other_TK.tolist())]
    torch.testing.assert_close(overlap(one_TK, other_TK, experts), torch.tensor(expected))
    assert torch.equal(overlap(one_TK, other_TK, experts), overlap(other_TK, one_TK, experts))
    assert (overlap(one_TK, one_TK.flip(1), experts) == 1).all()
