"""Forms against their definition, and back."""

import pytest
import torch
from torch import Tensor

from megatron_compete.checkpoint.families.forms import (
    SAME,
    Form,
    GatedDelta,
    GatedQueryKeyValue,
    Halves,
    Interleaved,
    PlusOne,
    QueryKeyValue,
    Rows,
    Transposed,
)

GROUPS, HEADS, HEAD = 2, 6, 3


def test_qkv_by_reference() -> None:
    """Each head finds its own rows: fused rows are numbered group by group, queries, key, value."""
    fused = torch.arange((HEADS + 2 * GROUPS) * HEAD).unsqueeze(1).float()
    found = [part.squeeze(1).tolist() for part in QueryKeyValue(GROUPS, HEAD).split(fused)]
    rows = iter(range(len(fused)))
    wanted: dict[str, list[float]] = {"q": [], "k": [], "v": []}
    for _ in range(GROUPS):
        for name, heads in (("q", HEADS // GROUPS), ("k", 1), ("v", 1)):
            wanted[name] += [float(next(rows)) for _ in range(heads * HEAD)]
    assert found == [wanted["q"], wanted["k"], wanted["v"]]


def test_gate_comes_before_up() -> None:
    gate, up = Halves().split(torch.arange(6.0).view(6, 1))
    assert gate.flatten().tolist() == [0, 1, 2]
    assert up.flatten().tolist() == [3, 4, 5]


def test_a_weight_kept_as_its_distance_from_one_comes_back() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.linspace(0.5, 2, 99).to(dtype)
        stored = PlusOne().join([weight])
        assert stored.dtype == torch.float32 and stored[0] == -0.5
        assert PlusOne().split(stored)[0].to(dtype).equal(weight)


def test_heads_of_a_gated_delta_net_by_reference() -> None:
    """2 key heads of 1 number, 4 value heads of 1: rows by the names of what they make."""
    names = ["q0", "q1", "k0", "k1", *(f"v{i}" for i in range(4)), *(f"z{i}" for i in range(4))]
    names += [f"b{i}" for i in range(4)] + [f"a{i}" for i in range(4)]
    parts = GatedDelta(2, 1, 4, 1).split(torch.arange(20.0).view(20, 1))
    found = [[names[int(row)] for row in part] for part in parts]
    assert found[0] == ["q0", "k0", "v0", "v1", "z0", "z1", "q1", "k1", "v2", "v3", "z2", "z3"]
    assert found[1] == ["b0", "b1", "a0", "a1", "b2", "b3", "a2", "a3"]


def test_gates_lie_behind_their_queries() -> None:
    """1 group of 2 heads of 1 number."""
    queries, keys, values = GatedQueryKeyValue(1, 1).split(torch.arange(6.0).view(6, 1))
    assert queries.flatten().tolist() == [0, 2, 1, 3]
    assert (keys.item(), values.item()) == (4, 5)


def test_experts_whose_columns_of_gate_and_up_come_in_turns() -> None:
    (bias,) = Interleaved().split(torch.arange(8.0).view(2, 4))
    assert bias.tolist() == [[0, 2, 1, 3], [4, 6, 5, 7]]
    stored = torch.randn(2, 4, 3)
    (weight,) = Interleaved().split(stored)
    assert weight.shape == (2, 3, 4)
    assert weight[1, :, 0].equal(stored[1, 0]) and weight[1, :, 1].equal(stored[1, 2])


def test_rows_beyond_the_vocabulary_are_padding() -> None:
    (table,) = Rows(3, 5).split(torch.arange(10.0).view(5, 2))
    assert table.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert Rows(3, 5).join([table])[3:].eq(0).all()


QKV = (HEADS + 2 * GROUPS) * HEAD
CASES: list[tuple[Form, Tensor]] = [
    (SAME, torch.randn(4, 5)),
    (Halves(), torch.randn(8, 5)),
    (QueryKeyValue(GROUPS, HEAD), torch.randn(QKV, 5)),
    (QueryKeyValue(GROUPS, HEAD), torch.randn(QKV)),
    (QueryKeyValue(1, HEAD), torch.randn(5 * HEAD, 7)),
    (GatedQueryKeyValue(GROUPS, HEAD), torch.randn((2 * HEADS + 2 * GROUPS) * HEAD, 5)),
    (GatedDelta(2, 3, 4, 5), torch.randn(2 * 2 * 3 + 2 * 4 * 5 + 2 * 4, 7)),
    (Interleaved(), torch.randn(3, 8, 5)),
    (Interleaved(), torch.randn(3, 8)),
    (Transposed(), torch.randn(3, 8, 5)),
    (Rows(4, 4), torch.randn(4, 3)),
]


@pytest.mark.parametrize(("form", "stored"), CASES)
def test_join_is_the_inverse_of_split(form: Form, stored: Tensor) -> None:
    parts = form.split(stored)
    assert form.join(parts).equal(stored)
    assert all(again.equal(part) for again, part in zip(form.split(form.join(parts)), parts))
