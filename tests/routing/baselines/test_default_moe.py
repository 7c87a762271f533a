"""Default MoE's formulas against a dense sum in fp64."""

import torch

from megatron_compete.routing.baselines.default_moe import (
    chosen_experts,
    default_part,
    next_defaults,
    with_gradient_of,
)

T, E, K, H = 7, 6, 2, 5


def test_output_and_gradients_are_those_of_a_dense_sum() -> None:
    torch.manual_seed(0)
    logits = torch.randn(T, E, dtype=torch.float64, requires_grad=True)
    outputs, defaults = torch.randn(T, E, H, dtype=torch.float64), torch.randn(E, H, dtype=torch.float64)
    probs = logits.softmax(-1)
    chosen = chosen_experts(probs.detach(), K)
    assert (chosen.sum(-1) == K).all()
    found = ((probs * chosen).unsqueeze(-1) * outputs).sum(1) + default_part(probs * ~chosen, defaults)
    answers = torch.stack([torch.stack([outputs[t, e] if e in probs[t].topk(K).indices else defaults[e] for e in range(E)]) for t in range(T)])  # fmt: skip
    expected = torch.einsum("te,teh->th", probs, answers)
    torch.testing.assert_close(found, expected)
    cotangents = torch.randn(T, H, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((found * cotangents).sum(), logits)
    utilities = torch.einsum("teh,th->te", answers, cotangents)  # every expert has one, chosen or not
    dense = probs * (utilities - (probs * utilities).sum(-1, keepdim=True))
    torch.testing.assert_close(gradient, dense)


def test_means_follow_the_tokens_of_each_expert() -> None:
    defaults = torch.arange(6.0).view(3, 2)
    sums, tokens = torch.tensor([[4.0, 8.0], [0.0, 0.0], [3.0, 3.0]]), torch.tensor([4.0, 0.0, 1.0])
    found = next_defaults(defaults, sums, tokens, decay=0.75)
    assert found.tolist() == [[0.25, 1.25], [2.0, 3.0], [3.75, 4.5]]


def test_a_gradient_without_its_output() -> None:
    """The output bit for bit, its own gradient, and that of the dense sum with the defaults for the same dL/do."""
    torch.manual_seed(1)
    logits = torch.randn(T, E, dtype=torch.float64, requires_grad=True)
    outputs, defaults = torch.randn(T, E, H, dtype=torch.float64), torch.randn(E, H, dtype=torch.float64)
    cotangents = torch.randn(T, H, dtype=torch.float64)
    probs = logits.softmax(-1)
    chosen = chosen_experts(probs.detach(), K)
    sparse = ((probs * chosen).unsqueeze(-1) * outputs).sum(1)
    found = with_gradient_of(sparse, default_part(probs * ~chosen, defaults).double())
    assert torch.equal(found, sparse)
    (gradient,) = torch.autograd.grad((found * cotangents).sum(), logits)
    answers = torch.where(chosen.unsqueeze(-1), outputs, defaults.expand_as(outputs))
    utilities = torch.einsum("teh,th->te", answers, cotangents)
    torch.testing.assert_close(gradient, probs * (utilities - (probs * utilities).sum(-1, keepdim=True)))


def test_the_part_may_be_of_another_precision() -> None:
    output = torch.randn(T, H, dtype=torch.bfloat16, requires_grad=True)
    part = torch.randn(T, H, requires_grad=True)
    with_gradient_of(output, part).backward(torch.ones(T, H, dtype=torch.bfloat16))
    assert output.grad is not None and output.grad.dtype == torch.bfloat16
    assert part.grad is not None and part.grad.dtype == torch.float32 and bool((part.grad == 1).all())
