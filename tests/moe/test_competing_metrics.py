"""What a competing step records, under padding and group-limited routing, against the formulas over the valid tokens."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.moe import layouts, reference
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, WINNERS, Layout
from tests.moe.reference import Router, Weights
from tests.moe.steps import Batch, Case, Microbatch, train_step
from tests.moe.test_layouts import OPTIONS, STRONG, UTILITY, sampled
from tests.moe.test_uneven import padded
from tests.ranks import run_rank, run_ranks

CASES = {
    "response": Case(STRONG),
    "centred": Case(OPTIONS),
    "response in groups": Case(STRONG, router=Router(groups=(4, 2))),
    "utility": Case(UTILITY),
    "utility in groups": Case(UTILITY, router=Router(groups=(4, 2), pre_softmax=True)),
    "normal": Case(STRONG, competes=False),
    "sampled": sampled(OPTIONS),
    "sampled utility": sampled(UTILITY),
}
LAYOUTS = [Layout(), Layout(world=2, ep=2)]


def padded_batch(layout: Layout) -> Batch:
    """Microbatches of 6 and of 13 valid tokens among 16."""
    return [[padded(8, 9 + rank, [4, 2]), padded(8, 3 + rank, [8, 5])] for rank in range(layout.dp)]


def recorded(layout: Layout, cases: dict[str, Case]) -> dict[str, dict[str, list[float]]]:
    """Layer 1's sums of each quantity over all ranks, by case."""
    from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

    from megatron_compete.moe.metrics import LogIntervals, install_metrics

    layouts.initialize(layout)
    found = {}
    for name, case in cases.items():
        weights = Weights.random(EXPERTS, HIDDEN, FFN)
        layer = layouts.build_layer(layout, weights, case.config, case.current_step, **case.router.overrides())
        install_metrics(layer.competition, EXPERTS, LogIntervals())
        train_step(layer, layout, padded_batch(layout))
        sums = get_moe_metrics_tracker().sums  # type: ignore[attr-defined]
        sums.all_reduce()
        found[name] = {quantity: sums._cell(1, quantity).tolist() for quantity in sums._columns}
    return found


def favourites(best: Tensor, other: Tensor) -> Tensor:
    return (best[:, 0] == other[:, 0]).double()


Mean = tuple[Tensor, int]
"""A mean, and the tokens it is of."""


def expected(case: Case, microbatch: Microbatch) -> tuple[dict[str, Mean], Tensor]:
    """Means over the valid tokens of one microbatch that compete, or over all, and the tokens that each expert gets."""
    config, router, valid = case.config, case.router, microbatch.valid_T
    weights = Weights.random(EXPERTS, HIDDEN, FFN).double()
    tokens, cotangents = (microbatch.flat(whole).double() for whole in (microbatch.tokens, microbatch.cotangents))
    y, logits = reference.expert_outputs(tokens, weights), tokens @ weights.router.T
    p, choice = logits.softmax(-1), router.choice(logits, WINNERS)
    entropy = {"router_entropy": (-(p * p.log()).sum(1)[valid].mean(), int(valid.sum()))}
    if not case.competes:
        return entropy, counts(choice[valid])
    routed, valid = valid, valid & case.sampled(*microbatch.tokens.shape[:2])
    means = {}
    s = reference.responses(y, config)
    z = reference.ranking(s, config, valid)
    if config.kind == "utility":
        z = -torch.einsum("teh,th->te", y, cotangents)
    best = router.best(z, WINNERS)
    means["agreement"] = (choice.unsqueeze(1) == best.unsqueeze(2)).any(2).double().mean(1)[valid].mean()
    means["agreement_top1"] = favourites(best, choice)[valid].mean()
    count = int(valid.sum())
    if config.kind == "utility":
        return entropy | {name: (mean, count) for name, mean in means.items()}, counts(choice[routed])
    winners = best.sort().values
    y_w = y.gather(1, winners.unsqueeze(-1).expand(-1, -1, HIDDEN))
    means["distillation"] = reference.distillation(p[valid], z[valid], winners[valid], config)
    means["diversity"] = reference.mean_cosine(y_w[valid])
    means["response_balance"] = reference.entropy_form(s[valid].softmax(-1))
    of_experts = counts(winners[valid]) + counts(choice[routed & ~valid])
    return entropy | {name: (mean, count) for name, mean in means.items()}, of_experts


def counts(experts: Tensor) -> Tensor:
    return torch.bincount(experts.flatten(), minlength=EXPERTS)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_sums_are_those_of_the_valid_tokens(layout: Layout) -> None:
    per_rank = run_ranks(layout.world, recorded, layout, CASES)
    for name, case in CASES.items():
        totals: dict[str, list[float]] = {}
        tokens_of_expert = torch.zeros(EXPERTS)
        for microbatch in (one for mine in padded_batch(layout) for one in mine):
            means, of_expert = expected(case, microbatch)
            tokens_of_expert += of_expert
            for quantity, (value, num_tokens) in means.items():
                total, count = totals.get(quantity, [0.0, 0])
                totals[quantity] = [total + float(value.nan_to_num()) * num_tokens, count + num_tokens]
        for found in (rank[name] for rank in per_rank):
            assert found.pop("expert_tokens") == tokens_of_expert.tolist(), name
            found.pop("expert_changes")
            assert {quantity for quantity, sums in found.items() if sums[1]} == totals.keys(), name
            for quantity, sums in totals.items():
                assert found[quantity] == pytest.approx(sums, rel=1e-4, abs=1e-5), (name, quantity)


def observed(is_mtp: bool) -> bool:
    """Whether a training pass of the layer, or of one like it among the MTP layers, leaves anything in the sums."""
    layouts.initialize(Layout())
    from megatron_compete.moe.metrics import CompetitionMetrics, LogIntervals, install_metrics, metrics_due

    layer = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), STRONG, CASES["normal"].current_step)
    layer.is_mtp_layer = layer.router.is_mtp_layer = is_mtp
    install_metrics(layer.competition, EXPERTS, LogIntervals())
    layer(torch.randn(8, 2, HIDDEN, requires_grad=True))
    metrics = metrics_due()
    assert isinstance(metrics, CompetitionMetrics)
    return bool(metrics.sums.packed.any())


def test_mtp_layers_leave_the_decoders_metrics_alone() -> None:
    """They restart at layer number 1."""
    assert run_rank(observed, False) and not run_rank(observed, True)


def router_gradients() -> list[Tensor]:
    """Of a layer in evaluation that is differentiated all the same, with and without a balance loss."""
    layouts.initialize(Layout())
    grads = []
    for coeff in (0.0, 3.0):
        config = dataclasses.replace(STRONG, router_balance_coeff=coeff)
        layer = layouts.build_layer(Layout(), Weights.random(EXPERTS, HIDDEN, FFN), config).eval()
        layer(torch.ones(8, 2, HIDDEN).cumsum(0).requires_grad_())[0].sum().backward()
        grads.append(layer.router.weight.grad)
    return grads


def test_evaluation_carries_no_loss() -> None:
    without, with_balance = run_rank(router_gradients)
    assert without.any() and torch.equal(without, with_balance)
