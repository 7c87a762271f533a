"""What goes out to the ranks that hold the experts comes home by the transpose: <A x, y> = <x, A* y> over all ranks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megatron_compete.moe.expert_group import ExpertGroups
from tests.moe import layouts
from tests.moe.layouts import Layout
from tests.ranks import run_ranks

TOKENS, HIDDEN, LOCAL_EXPERTS = 3, 5, 2


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Of which sums are exact; others on every rank."""
    random = torch.Generator().manual_seed(100 * seed + torch.distributed.get_rank())
    return torch.randint(-9, 10, shape, generator=random).float()


def inner_product(a: Tensor, b: Tensor) -> float:
    total = (a * b).sum()
    torch.distributed.all_reduce(total)
    return float(total)


def transposes(layout: Layout) -> None:
    from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

    layouts.initialize(layout)
    groups = ExpertGroups.of(get_default_pg_collection())
    group_tokens, position_tokens = layout.ep * layout.etp * TOKENS, layout.ep * TOKENS
    tokens_TH, tokens_GH = whole_numbers(TOKENS, HIDDEN, seed=1), whole_numbers(group_tokens, HIDDEN, seed=2)
    whole_PH = whole_numbers(position_tokens, HIDDEN, seed=3)
    scores_PE = whole_numbers(position_tokens, LOCAL_EXPERTS, seed=4)
    scores_TE = whole_numbers(TOKENS, layout.ep * LOCAL_EXPERTS, seed=5)
    pairs: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor, Tensor]] = [
        (groups.gather_tokens, groups.scatter_tokens, tokens_TH, tokens_GH),
        (groups.sum_shards, groups.spread_to_shards, tokens_GH, whole_PH),
        (groups.send_home, groups.send_out, scores_PE, scores_TE),
    ]
    for forward, transpose, x, y in pairs:
        assert inner_product(forward(x), y) == inner_product(x, transpose(y))
    assert torch.equal(groups.send_out(groups.send_home(scores_PE)), scores_PE)


@pytest.mark.parametrize("layout", [Layout(world=4, ep=4), Layout(world=4, ep=2, etp=2)], ids=str)
def test_the_way_back_is_the_transpose(layout: Layout) -> None:
    run_ranks(4, transposes, layout)
