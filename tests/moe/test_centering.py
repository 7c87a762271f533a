"""Running centring: the recurrence, and what a checkpoint carries over. (All options against the dense reference:
test_layouts.py.)"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.config import CompeteConfig
from tests.moe import layouts
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout
from tests.moe.reference import Weights, expert_outputs
from tests.ranks import run_rank, run_ranks

SEQUENCE, BATCH = 8, 2


def running_statistics() -> list[Tensor]:
    """Winners over three microbatches, the buffers after them, and a copy's winners after loading the buffers."""
    from megatron_compete.moe import layer as module

    layouts.initialize(Layout())
    seen: list[Tensor] = []
    choose = module.choose_winners
    module.choose_winners = lambda scores, k: seen.append(scores) or choose(scores, k)
    config = CompeteConfig(rate=1.0, max_active_layers=1, response_centering="ema", response_ema_decay=0.8)
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


def running_on_rank(layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of this rank's tokens at the second microbatch, and the buffers after it, of a model in bf16."""
    layouts.initialize(layout)
    config = CompeteConfig(rate=1.0, max_active_layers=1, response_centering="ema", response_ema_decay=0.8)
    layer = layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), config)
    layer.centering.bfloat16()
    for number in range(2):
        scores = layer.centering(responses_of(torch.distributed.get_rank(), number), None)
    return scores, layer.centering.mean, layer.centering.variance


def responses_of(rank: int, number: int) -> Tensor:
    """Unlike on different ranks: another level, and another number of tokens."""
    random = torch.Generator().manual_seed(10 * rank + number)
    return rank + torch.randn(4 + 3 * rank, EXPERTS, generator=random)


@pytest.mark.parametrize("layout", [Layout(world=2), Layout(world=2, tp=2), Layout(world=4, cp=2, ep=2)], ids=str)
def test_running_statistics_are_over_all_replicas(layout: Layout) -> None:
    """The same on every rank, of the tokens of all: data, context and tensor parallel ones; kept in fp32."""
    per_rank = run_ranks(layout.world, running_on_rank, layout)
    whole = [torch.cat([responses_of(r, n) for r in range(layout.world)]).double() for n in range(2)]
    (mean, variance), later = [(one.mean(0), one.var(0, unbiased=False)) for one in whole]
    for rank, (scores, kept_mean, kept_variance) in enumerate(per_rank):
        expected = (responses_of(rank, 1) - mean) / (variance.sqrt() + 1e-6)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-4, atol=1e-4)
        for kept, before, now in ((kept_mean, mean, later[0]), (kept_variance, variance, later[1])):
            assert kept.dtype == torch.float32
            torch.testing.assert_close(kept.double(), 0.8 * before + 0.2 * now, rtol=1e-5, atol=1e-5)


def running_beside_empty_microbatches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """The buffers after each microbatch: none of the first, third and fourth one's tokens counts."""
    layouts.initialize(Layout())
    config = CompeteConfig(rate=1.0, max_active_layers=1, response_centering="ema", response_ema_decay=0.8)
    centering = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), config).centering
    tokens, none = responses_of(0, 0), torch.empty(0, EXPERTS)
    padding = torch.zeros(len(tokens), dtype=torch.bool)
    kept = []
    for responses, valid in ((none, None), (tokens, None), (none, None), (tokens, padding), (responses_of(0, 1), None)):
        centering(responses, valid)
        kept.append((centering.updates.clone(), centering.mean.clone(), centering.variance.clone()))
    return kept


def test_microbatches_without_a_token_leave_the_running_statistics_alone() -> None:
    """A sample of the tokens may be empty, and all that competes may be padding."""
    empty, first, *unchanged, last = run_rank(running_beside_empty_microbatches)
    assert all(value.count_nonzero() == 0 for value in empty)
    for kept in unchanged:
        assert all(torch.equal(value, before) for value, before in zip(kept, first))
    before, now = responses_of(0, 0).double(), responses_of(0, 1).double()
    assert first[0] == 1 and last[0] == 2
    torch.testing.assert_close(first[1].double(), before.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(last[1].double(), 0.8 * before.mean(0) + 0.2 * now.mean(0), rtol=1e-5, atol=1e-6)
    variances = (one.var(0, unbiased=False) for one in (before, now))
    torch.testing.assert_close(
        last[2].double(), sum(w * v for w, v in zip((0.8, 0.2), variances)), rtol=1e-5, atol=1e-6
    )
