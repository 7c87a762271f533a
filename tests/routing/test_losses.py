"""Losses against the formulas written as loops in fp64."""

import math

import torch

from megatron_compete.routing.losses import (
    distillation_target,
    diversity_loss,
    entropy_balance_loss,
    kl_distillation,
    mse_distillation,
    router_z_loss,
    token_mean,
    top1_balance_loss,
)

T, E, K, H = 6, 5, 3, 4


def test_token_mean_ignores_padding() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]])
    assert token_mean(values, torch.tensor([True, True, False])).tolist() == [2.0, 3.0]
    assert token_mean(values, torch.tensor([False] * 3)).tolist() == [0.0, 0.0]
    assert token_mean(values[:0]).tolist() == [0.0, 0.0]


def test_distillation_is_the_two_means_of_the_paper() -> None:
    logits, responses = torch.randn(2, T, E, dtype=torch.float64)
    winners = responses.topk(K).indices
    p, q = logits.softmax(-1), responses.softmax(-1)
    everywhere = sum((p[t, e] - q[t, e]) ** 2 for t in range(T) for e in range(E)) / (T * E)
    at_winners = sum((p[t, e] - q[t, e]) ** 2 for t in range(T) for e in winners[t]) / (T * K)
    loss = mse_distillation(p, distillation_target(responses), winners, 0.2)
    torch.testing.assert_close(loss, everywhere + 0.2 * at_winners)


def test_kl_distillation_is_the_divergence_and_that_over_the_winners() -> None:
    logits, responses = torch.randn(2, T, E, dtype=torch.float64)
    winners = responses.topk(K).indices
    p, q = logits.softmax(-1), responses.softmax(-1)
    p_w, q_w = (x.gather(1, winners) / x.gather(1, winners).sum(1, keepdim=True) for x in (p, q))
    expected = [(b * (b / a).log()).sum(1).mean() for a, b in ((p, q), (p_w, q_w))]
    torch.testing.assert_close(kl_distillation(p, q, winners, 0.3), expected[0] + 0.3 * expected[1])
    torch.testing.assert_close(kl_distillation(q, q, winners, 0.3), torch.zeros((), dtype=torch.float64))


def test_target_temperature_and_standardisation() -> None:
    scores = 0.7 + 1e-3 * torch.randn(T, E, dtype=torch.float64)
    plain = distillation_target(scores)
    assert (plain - 1 / E).abs().max() < 1e-3
    torch.testing.assert_close(distillation_target(scores, temperature=1e-3), (scores * 1e3).softmax(-1))
    standard = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True, unbiased=False)
    torch.testing.assert_close(distillation_target(scores, standardize=True), standard.softmax(-1))
    assert distillation_target(torch.ones(T, E), standardize=True).allclose(torch.tensor(1 / E))


def test_distillation_gives_no_gradient_to_the_responses() -> None:
    responses = torch.randn(T, E, requires_grad=True)
    probs = torch.randn(T, E).softmax(-1).requires_grad_()
    mse_distillation(probs, distillation_target(responses), responses.topk(K).indices, 0.2).backward()
    assert responses.grad is None
    assert probs.grad is not None and probs.grad.abs().sum() > 0


def test_diversity_is_the_mean_cosine_of_ordered_pairs() -> None:
    outputs = torch.randn(T, K, H)
    cosines = [
        torch.cosine_similarity(outputs[t, i], outputs[t, j], dim=0)
        for t in range(T)
        for i in range(K)
        for j in range(K)
        if i != j
    ]
    torch.testing.assert_close(diversity_loss(outputs), torch.stack(cosines).mean())
    assert torch.autograd.gradcheck(diversity_loss, outputs.double().requires_grad_())


def test_diversity_survives_one_winner_and_dead_outputs() -> None:
    assert diversity_loss(torch.randn(T, 1, H)) == 0
    outputs = torch.zeros(T, K, H, requires_grad=True)
    loss = diversity_loss(outputs)
    loss.backward()
    assert loss == 0 and outputs.grad is not None and outputs.grad.isfinite().all()


def test_entropy_balance_is_least_when_experts_are_used_alike() -> None:
    alike = torch.full((T, E), 1 / E)
    torch.testing.assert_close(entropy_balance_loss(alike), -torch.tensor(E).log())
    lopsided = torch.eye(E)[torch.zeros(T, dtype=torch.long)].requires_grad_()
    loss = entropy_balance_loss(lopsided)
    loss.backward()
    assert loss == 0 and lopsided.grad is not None and lopsided.grad.isfinite().all()


def test_entropy_balance_of_split_tokens_is_that_of_the_whole() -> None:
    whole = torch.randn(2 * T, E).softmax(-1).requires_grad_()
    entropy_balance_loss(whole).backward()
    halves = [half.clone().requires_grad_() for half in whole.detach().chunk(2)]
    means = torch.stack([half.detach().mean(0) for half in halves])
    for half in halves:
        loss = entropy_balance_loss(half, mean_over_ranks=lambda _: means.mean(0))
        torch.testing.assert_close(loss, entropy_balance_loss(whole))
        (loss / 2).backward()
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat([half.grad for half in halves]), whole.grad)  # type: ignore[misc]


S, B = 5, 3
SOME = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], dtype=torch.bool)
"""Of [S, B]: the last sequence has no valid token."""


def top1_by_loops(shares: torch.Tensor, first: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    balances = []
    for b in range(B):
        positions = [s for s in range(S) if valid[s, b]]
        if positions:
            p = [sum(shares[s, b, e] for s in positions) / len(positions) for e in range(E)]
            f = [sum(int(first[s, b]) == e for s in positions) / len(positions) for e in range(E)]
            balances.append(E * sum(p[e] * f[e] for e in range(E)))
    return sum(balances) / len(balances)  # type: ignore[return-value]


def test_top1_balance_is_a_mean_over_sequences() -> None:
    shares = torch.randn(S, B, E, dtype=torch.float64).softmax(-1).requires_grad_()
    first = torch.randint(E, (S, B))
    everywhere = torch.ones(S, B, dtype=torch.bool)
    for valid in (None, SOME):
        expected = top1_by_loops(shares, first, everywhere if valid is None else valid)
        found = top1_balance_loss(shares, first, valid)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(one, shares)[0] for one in (found, expected)))
        narrow = top1_balance_loss(shares.detach().float(), first, valid)
        assert narrow.dtype == torch.float32 and abs(narrow.double() - expected) < 1e-6
    assert top1_balance_loss(shares, first, torch.zeros_like(SOME)) == 0
    assert top1_balance_loss(shares[:0], first[:0]) == 0


def test_top1_balance_is_one_where_experts_are_used_alike() -> None:
    alike, first = torch.full((E, B, E), 1 / E), torch.arange(E).unsqueeze(1).expand(E, B)
    torch.testing.assert_close(top1_balance_loss(alike, first), torch.tensor(1.0))
    one = torch.eye(E)[torch.zeros(E, B, dtype=torch.long)]
    torch.testing.assert_close(top1_balance_loss(one, torch.zeros(E, B, dtype=torch.long)), torch.tensor(float(E)))


def test_top1_balance_of_split_sequences_is_that_of_the_whole() -> None:
    shares = torch.randn(S, B, E, dtype=torch.float64).softmax(-1).requires_grad_()
    first = torch.randint(E, (S, B))
    whole = top1_balance_loss(shares, first, SOME)
    whole.backward()
    parts = [slice(0, 1), slice(1, S)]
    sums: list[torch.Tensor] = []  # what each part would bring to a reduction over ranks
    for part in parts:
        top1_balance_loss(shares.detach()[part], first[part], SOME[part], lambda mine: sums.append(mine) or mine)  # type: ignore[func-returns-value]
    halves = [shares.detach()[part].clone().requires_grad_() for part in parts]
    for half, part in zip(halves, parts, strict=True):
        loss = top1_balance_loss(half, first[part], SOME[part], lambda _: sum(sums))  # type: ignore[arg-type, return-value]
        torch.testing.assert_close(loss, whole)
        loss.backward()
    torch.testing.assert_close(torch.cat([half.grad for half in halves]), shares.grad)  # type: ignore[misc]


def test_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    logits = torch.randn(T, E, dtype=torch.float64)
    squares = [math.log(sum(math.exp(z) for z in row)) ** 2 for row in logits.tolist()]
    torch.testing.assert_close(router_z_loss(logits), torch.tensor(sum(squares) / T, dtype=torch.float64))
    counted = [square for square, valid in zip(squares, VALID, strict=True) if valid]
    assert abs(router_z_loss(logits.float(), VALID) - sum(counted) / len(counted)) < 1e-6


VALID = torch.tensor([True, False, True, True, False, True])


def losses_of(values: dict[str, torch.Tensor], valid: torch.Tensor | None) -> dict[str, torch.Tensor]:
    winners = values["target"].topk(K).indices
    return {
        "mse": mse_distillation(values["probs"], values["target"], winners, 0.2, valid),
        "kl": kl_distillation(values["probs"], values["target"], winners, 0.2, valid),
        "diversity": diversity_loss(values["outputs"], valid),
        "balance": entropy_balance_loss(values["probs"], valid),
        "z": router_z_loss(values["probs"], valid),
    }


def some_values() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    probs, target = torch.randn(2, T, E, generator=random).softmax(-1)
    return {"probs": probs, "target": target, "outputs": torch.randn(T, K, H, generator=random)}


def test_padding_counts_in_no_loss() -> None:
    values = some_values()
    masked, alone = losses_of(values, VALID), losses_of({n: v[VALID] for n, v in values.items()}, None)
    for name, loss in masked.items():
        torch.testing.assert_close(loss, alone[name], msg=name)
        assert not torch.allclose(loss, losses_of(values, None)[name]), name


def test_losses_of_bf16_are_reduced_in_fp32() -> None:
    values = {name: value.bfloat16() for name, value in some_values().items()}
    wide = {name: value.float() for name, value in values.items()}
    for loss in (diversity_loss, entropy_balance_loss, router_z_loss):
        argument = "outputs" if loss is diversity_loss else "probs"
        found = loss(values[argument])  # type: ignore[operator]
        assert found.dtype == torch.float32
        assert torch.equal(found, loss(wide[argument]))  # type: ignore[operator]
