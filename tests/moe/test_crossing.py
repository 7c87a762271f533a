"""Gradients that go home past the experts, in one graph and in two that end at the border between them."""

import pytest
import torch
from torch import Tensor

from megatron_compete.moe.crossing import Crossing


def losses_gradients(one_graph: bool) -> list[Tensor | None]:
    """Of the probabilities and of two tensors that cross: one is in the loss, the other is not."""
    random = torch.Generator().manual_seed(0)
    probs, logits, unused = (torch.randn(4, 3, generator=random).requires_grad_() for _ in range(3))
    crossing = Crossing()
    departed = crossing.depart(probs * 2, logits * 3, unused * 5)
    inner = departed if one_graph else departed.detach().requires_grad_()
    output, crossed, other = crossing.arrive(inner.square())
    assert torch.equal(crossed, logits * 3) and torch.equal(other, unused * 5)
    loss = (output.sum(1) * crossed.square().sum(1)).sum()
    loss.backward()
    if not one_graph:
        assert logits.grad is None
        departed.backward(inner.grad)
    direct = ((probs * 2).square().sum(1) * (logits * 3).square().sum(1)).sum()
    for found, expected in zip((probs, logits), torch.autograd.grad(direct, (probs, logits)), strict=True):
        torch.testing.assert_close(found.grad, expected)
    return [probs.grad, logits.grad, unused.grad]


def test_gradients_come_home_in_one_graph_and_in_two() -> None:
    one, two = losses_gradients(one_graph=True), losses_gradients(one_graph=False)
    assert all(torch.equal(*pair) for pair in zip(one[:2], two[:2], strict=True))  # type: ignore[arg-type]
    for unused in (one[2], two[2]):
        assert unused is None or not unused.any()


def test_gradients_of_microbatches_in_flight_stay_apart() -> None:
    logits = [torch.ones(2, 2, requires_grad=True) for _ in range(2)]
    outputs = []
    for factor, tensor in enumerate(logits, start=1):
        crossing = Crossing()
        departed = crossing.depart(torch.ones(2, 2), tensor)
        output, crossed = crossing.arrive(departed)
        outputs.append((output * crossed * factor).sum())
    for output in outputs:
        output.backward()
    assert [float(tensor.grad.mean()) for tensor in logits] == [1.0, 2.0]  # type: ignore[union-attr]


def test_without_gradient_nothing_is_kept() -> None:
    crossing = Crossing()
    with torch.no_grad():
        output, crossed = crossing.arrive(crossing.depart(torch.ones(2, 2), torch.ones(2, 2, requires_grad=True)))
    assert not output.requires_grad and not crossed.requires_grad
    assert crossing.take_gradients() == ()


@pytest.mark.parametrize("times", [1, 2])
def test_a_second_backward_pass_has_its_own_gradients(times: int) -> None:
    logits = torch.ones(2, 2, requires_grad=True)
    crossing = Crossing()
    output, crossed = crossing.arrive(crossing.depart(torch.ones(2, 2), logits))
    loss = (output * crossed).sum()
    for _ in range(times):
        loss.backward(retain_graph=True)
    assert torch.equal(logits.grad, torch.full((2, 2), float(times)))  # type: ignore[arg-type]
