"""Centring, distances and response gradients in the layer, against dense tensors and plain autograd."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe import layouts, steps
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout
from tests.moe.reference import Weights, entropy_form, expert_outputs, responses
from tests.ranks import run_rank, run_ranks

SEQUENCE, BATCH = 8, 2

LAYOUTS = [Layout(), Layout(world=2, ep=2), Layout(world=2, tp=2, etp=2), Layout(world=2, cp=2, ep=2)]
LAYOUTS += [Layout(world=4, tp=2, ep=2, etp=2), Layout(world=4, tp=2, ep=4)]
STRONG: dict[str, Any] = dict(
    rate=1.0, max_active_layers=1, distill_coeff=2.0, diversity_coeff=0.5, response_balance_coeff=3.0,
    score_chunk_tokens=5,
)  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    dict(response_centering="batch"),
    dict(response_gradients="all"),
    dict(response_gradients="all", response_centering="batch", distill_loss="kl", response="l2"),
    dict(distill_loss="kl", distill_temperature=0.5, distill_standardize=True),
]


def steps_on_rank(layout: Layout) -> list[steps.Result]:
    """One training step per set of options."""
    layouts.initialize(layout)
    results = []
    for option in OPTIONS:
        layer = layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), CompeteConfig(**STRONG, **option))
        results.append(steps.train_step(layer, layout, steps.random_batch(layout, SEQUENCE, BATCH)))
    return results


def step_with_options(
    tokens: Tensor, weights: Weights, k: int, config: CompeteConfig, valid: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, H], loss and winners by the formulas; the graph through losing responses kept or cut as asked."""
    assert valid.all()
    y = expert_outputs(tokens, weights)
    s = responses(y, config)
    z = s.detach()
    if config.response_centering == "batch":
        z = (z - z.mean(0)) / (z.std(0, unbiased=False) + 1e-6)
    winners = z.topk(k).indices
    y_w, s_w = y.gather(1, winners[..., None].expand(-1, -1, tokens.shape[1])), s.gather(1, winners)
    output = (s_w / s_w.sum(1, keepdim=True))[..., None].mul(y_w).sum(1)

    p = (tokens @ weights.router.T).softmax(-1)
    cosine = F.cosine_similarity(y_w.unsqueeze(1), y_w.unsqueeze(2), dim=-1)
    balanced = s if config.response_gradients == "all" else s.detach().scatter(1, winners, s_w)
    loss = (
        config.distill_coeff * distillation(p, z, winners, config)
        + config.diversity_coeff * (cosine.sum((1, 2)) - k).mean() / (k * (k - 1))
        + config.response_balance_coeff * entropy_form(balanced.softmax(-1))
    )
    return output, loss, winners


def distillation(p: Tensor, z: Tensor, winners: Tensor, config: CompeteConfig) -> Tensor:
    """mse or kl to softmax(z / temperature), with the share over the winners."""
    if config.distill_standardize:
        z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, unbiased=False)
    q = (z / config.distill_temperature).softmax(-1)
    p_w, q_w = p.gather(1, winners), q.gather(1, winners)
    if config.distill_loss == "mse":
        return (p - q).square().mean() + config.distill_winner_coeff * (p_w - q_w).square().mean()
    p_w, q_w = p_w / p_w.sum(1, keepdim=True), q_w / q_w.sum(1, keepdim=True)
    whole, over_winners = ((b * (b / a).log()).sum(1).mean() for a, b in ((p, q), (p_w, q_w)))
    return whole + config.distill_winner_coeff * over_winners


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_options_equal_dense_autograd(layout: Layout) -> None:
    per_rank = run_ranks(layout.world, steps_on_rank, layout)
    batch, weights = steps.random_batch(layout, SEQUENCE, BATCH), Weights.random(EXPERTS, HIDDEN, FFN)
    for position, option in enumerate(OPTIONS):
        config = CompeteConfig(**STRONG, **option)
        expected = steps.reference_step(batch, weights, layout, config, step_with_options)
        steps.assert_equal_to_reference([rank[position] for rank in per_rank], expected, layout)


def running_statistics() -> list[Tensor]:
    """Winners over three microbatches, the buffers after them, and a copy's winners after loading the buffers."""
    from megatron_compete.moe import layer as module

    layouts.initialize(Layout())
    seen: list[Tensor] = []
    choose = module.choose_winners
    module.choose_winners = lambda scores, k: seen.append(scores) or choose(scores, k)
    config = CompeteConfig(**STRONG, response_centering="ema", response_ema_decay=0.8)
    layer = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), config)
    batches = [torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    for batch in batches[:3]:
        layer(batch)
    copy = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), config).bfloat16().float()
    copy.load_state_dict({k: v for k, v in layer.state_dict().items() if v is not None})
    layer(batches[3])
    copy(batches[3])
    return seen


def test_running_centering_follows_the_recurrence_and_the_checkpoint() -> None:
    seen = run_rank(running_statistics)
    weights = Weights.random(EXPERTS, HIDDEN, FFN).double()
    mean = variance = None
    for number, scores in enumerate(seen[:4]):
        batch = torch.randn(SEQUENCE, BATCH, HIDDEN, generator=torch.Generator().manual_seed(number)).double()
        s = F.softplus(expert_outputs(batch.view(-1, HIDDEN), weights)).mean(-1).detach()
        own = s.mean(0), s.var(0, unbiased=False)
        mean, variance = own if mean is None else (mean, variance)
        expected = (s - mean) / (variance.sqrt() + 1e-6)
        assert (scores - expected.float()).abs().max() < 1e-3
        if number:
            mean, variance = (0.8 * old + 0.2 * new for old, new in zip((mean, variance), own))
    assert torch.equal(seen[3], seen[4])
