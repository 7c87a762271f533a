"""The scoring pass: what it sends and what it keeps."""

import pytest
import torch

from megatron_compete.config import CompeteConfig
from megatron_compete.moe.expert_group import ExpertGroups
from megatron_compete.moe.scoring import PlainScorer, padded_chunks, score_tokens
from megatron_compete.routing.responses import softplus_response
from tests.moe import layouts
from tests.moe.layouts import EXPERTS, FFN, HIDDEN, Layout
from tests.moe.reference import Weights, expert_outputs
from tests.ranks import run_ranks

TOKENS = 12


def score_on_rank(chunk_tokens: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    layout = Layout(world=2, ep=2)
    layouts.initialize(layout)
    layer = layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), CompeteConfig())
    tokens = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(torch.distributed.get_rank()))
    sent = _count_sent_bytes()
    outputs_seen: list[int] = []

    def response(outputs: torch.Tensor) -> torch.Tensor:
        outputs_seen.append(outputs.numel())
        return softplus_response(outputs)

    responses = score_tokens(tokens, PlainScorer(layer.experts, response, layer.groups), layer.groups, chunk_tokens)
    assert isinstance(layer.groups, ExpertGroups) and not responses.requires_grad
    return tokens, responses, sum(sent), max(outputs_seen)


def _count_sent_bytes() -> list[int]:
    """Bytes that this rank hands to other ranks, by collective."""
    sent: list[int] = []
    gather, all_to_all = torch.distributed.all_gather_into_tensor, torch.distributed.all_to_all_single

    def count(tensor: torch.Tensor, group: torch.distributed.ProcessGroup, share: float) -> None:
        sent.append(int(tensor.nbytes * (group.size() - 1) * share))

    def counted_gather(output, input, group, async_op):  # type: ignore[no-untyped-def]
        count(input, group, 1.0)
        return gather(output, input, group=group, async_op=async_op)

    def counted_all_to_all(output, input, group):  # type: ignore[no-untyped-def]
        count(input, group, 1 / group.size())
        return all_to_all(output, input, group=group)

    torch.distributed.all_gather_into_tensor = counted_gather
    torch.distributed.all_to_all_single = counted_all_to_all
    return sent


def test_scores_are_the_dense_responses_whatever_the_chunk() -> None:
    weights = Weights.random(EXPERTS, HIDDEN, FFN)
    for chunk in (5, 100):
        for tokens, responses, _, _ in run_ranks(2, score_on_rank, chunk):
            dense = softplus_response(expert_outputs(tokens.double(), weights.double())).detach().float()
            torch.testing.assert_close(responses, dense, rtol=1e-5, atol=1e-6)


def test_sends_tokens_once_and_scalars_back_and_holds_one_chunk_of_outputs() -> None:
    chunk = 5
    for _, _, sent, largest in run_ranks(2, score_on_rank, chunk):
        tokens_out = TOKENS * HIDDEN * 4
        scalars_home = TOKENS * EXPERTS // 2 * 4
        assert sent == tokens_out + scalars_home
        assert largest == 2 * chunk * HIDDEN


def overlapped_and_not(layout: Layout) -> None:
    """The same bits with and without the next chunk on its way, of ranks with different numbers of tokens."""
    layouts.initialize(layout)
    layer = layouts.build_layer(layout, Weights.random(EXPERTS, HIDDEN, FFN), CompeteConfig())
    rank = torch.distributed.get_rank()
    random = torch.Generator().manual_seed(rank)
    tokens, vectors = torch.randn(2, (TOKENS, 7, 0, 3)[rank], HIDDEN, generator=random)
    under_way: list[int] = []

    def projection(outputs: torch.Tensor, vectors_PH: torch.Tensor) -> torch.Tensor:
        under_way.append(started[0] - finished[0])
        return (outputs * vectors_PH).sum(-1)

    started, finished = _count_gatherings()
    groups, scorer = layer.groups, PlainScorer(layer.experts, projection, layer.groups)
    apart = torch.cat([
        groups.send_home(scorer.start()(groups.gather_tokens(chunk), groups.start_gather_position(of_chunk).wait()))
        for chunk, of_chunk in padded_chunks(groups, 4, tokens, vectors)
    ])  # fmt: skip
    assert set(under_way) == {0} and started == finished
    under_way.clear()
    assert torch.equal(score_tokens(tokens, scorer, groups, 4, vectors), apart[: len(tokens)])
    collectives = 1 + (layer.groups.expert.size() > 1)  # tokens, and vectors if other ranks have any
    of_chunks = [under_way[first] for first in range(0, len(under_way), EXPERTS // layout.ep)]
    assert of_chunks == [collectives, collectives, 0] and started == finished


def _count_gatherings() -> tuple[list[int], list[int]]:
    """How many all-gathers have been started, and how many awaited."""
    started, finished = [0], [0]
    gather = torch.distributed.all_gather_into_tensor

    class Counted:
        def __init__(self, work: torch.distributed.Work) -> None:
            self.work = work

        def wait(self) -> None:
            finished[0] += 1
            self.work.wait()

    def counted(output, input, group, async_op):  # type: ignore[no-untyped-def]
        started[0] += 1
        return Counted(gather(output, input, group=group, async_op=async_op))

    torch.distributed.all_gather_into_tensor = counted
    return started, finished


@pytest.mark.parametrize("layout", [Layout(world=4, ep=4), Layout(world=4, ep=2, etp=2)], ids=str)
def test_gathering_ahead_changes_no_bit(layout: Layout) -> None:
    run_ranks(4, overlapped_and_not, layout)
