"""Where Megatron's groups cross nodes, in layouts that can be counted by hand."""

import pytest

from megatron_compete.plan.groups import Groups
from tests.plan.jobs import job_of

LAYOUT = (
    "--nproc-per-node 8 --tensor-model-parallel-size 2 --sequence-parallel --pipeline-model-parallel-size 2 "
    "--expert-model-parallel-size 4 --expert-tensor-parallel-size 1 --global-batch-size 32"
)


def groups(gpus: int, more: str = "") -> Groups:
    return Groups(job_of(f"{LAYOUT} {more}", gpus))


def test_two_nodes() -> None:
    """Ranks 0..7 are stage 0 on the first node: TP pairs, DP of 4, experts in fours; stage 1 is the second node."""
    two = groups(16)
    assert [(two[name].size, two[name].ring_share) for name in ("tp", "dp-cp", "ep", "edp")] == [
        (2, 0.0), (4, 0.0), (4, 0.0), (2, 0.0),
    ]  # fmt: skip
    assert two.stage_share == two.ends_share == 1.0


def test_experts_over_two_nodes() -> None:
    """Four nodes, a stage on two: 16 experts' ranks, 8 on a node; of 15 peers 8 are elsewhere, of 16 links 2 cross."""
    four = groups(32, "--expert-model-parallel-size 16 --num-experts 16")
    assert four["ep"].size == 16
    assert four["ep"].peer_share == four["ep"].across_share == pytest.approx(8 / 15)
    assert four["ep"].ring_share == 2 / 16
    assert four["dp-cp"].ring_share == 2 / 8  # ranks 0, 2, .. 14: four on each node
    assert four["tp"].ring_share == 0.0


def test_one_member_a_node() -> None:
    job = groups(32, "--expert-model-parallel-size 8")["edp"]
    assert (job.size, job.ring_share, job.peer_share) == (2, 1.0, 1.0)


def test_interleaving_closes_the_ring_of_stages() -> None:
    """Stages 0 and 1 on one node, 2 and 3 on the other: one link of three crosses, and the one back."""
    flags = "--nproc-per-node 2 --pipeline-model-parallel-size 4 --num-layers 8"
    assert Groups(job_of(flags, 4)).stage_share == pytest.approx(1 / 3)
    assert Groups(job_of(f"{flags} --num-virtual-stages-per-pipeline-rank 2", 4)).stage_share == 2 / 4


def test_the_order_of_ranks_is_megatrons() -> None:
    """Against the generator's own lists for a small world."""
    sizes = job_of(LAYOUT, 16).sizes
    assert sizes.groups("tp").tolist()[:2] == [[0, 1], [2, 3]]
    assert sizes.groups("dp-cp").tolist()[0] == [0, 2, 4, 6]
    assert sizes.groups("ep").tolist()[0] == [0, 1, 2, 3]
    assert sizes.groups("pp").tolist()[0] == [0, 8]
