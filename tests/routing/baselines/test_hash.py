"""Hash routing's table: K distinct experts an id, by seed and layer alone, all as likely."""

import pytest
import torch

from megatron_compete.routing.baselines.hash import ROWS, hash_table, hash_weights

V, E, K = 5000, 8, 3


def test_an_ids_experts_are_distinct_and_all_experts_as_frequent() -> None:
    table_VK = hash_table(V, E, K, seed=1, layer_number=1)
    assert table_VK.shape == (V, K) and table_VK.min() == 0 and table_VK.max() == E - 1
    assert all(len(set(experts)) == K for experts in table_VK.tolist())
    counts_E = table_VK.flatten().bincount(minlength=E).double()
    spread = (V * K / E * (1 - K / E)) ** 0.5  # of a sum of V draws with probability K/E
    assert ((counts_E - V * K / E).abs() < 4 * spread).all()
    together_EE = torch.zeros(E, E)
    chosen_VE = torch.zeros(V, E).scatter_(1, table_VK, 1.0)
    together_EE = chosen_VE.T @ chosen_VE
    pairs = together_EE[~torch.eye(E, dtype=torch.bool)]
    expected = V * K * (K - 1) / (E * (E - 1))
    assert ((pairs - expected).abs() < 5 * expected**0.5).all()


def test_seed_and_layer_say_the_table_and_nothing_else_does() -> None:
    table_VK = hash_table(V, E, K, seed=1, layer_number=1)
    torch.manual_seed(123)
    assert torch.equal(hash_table(V, E, K, seed=1, layer_number=1), table_VK)
    for seed, layer in ((2, 1), (1, 2), (1 + 2**32, 1)):
        other_VK = hash_table(V, E, K, seed=seed, layer_number=layer)
        assert (other_VK.sort(dim=1).values == table_VK.sort(dim=1).values).all(dim=1).float().mean() < 0.05  # 1 in 56


@pytest.mark.parametrize("padded", [V + 1, ROWS, ROWS + 1, 2 * ROWS])
def test_padding_of_the_vocabulary_changes_no_row(padded: int) -> None:
    rows = min(V, padded)
    longer = hash_table(padded, E, K, seed=3, layer_number=2)
    assert longer.shape == (padded, K)
    assert torch.equal(longer[:rows], hash_table(V, E, K, seed=3, layer_number=2)[:rows])


def test_these_numbers_stay() -> None:
    """A resumed run and a published one rest on them."""
    assert hash_table(4, 16, 2, seed=1, layer_number=1).tolist() == STORED


STORED = [[0, 14], [14, 11], [2, 5], [9, 13]]


def test_weights_by_hand() -> None:
    table_VK = torch.tensor([[0, 2], [3, 1]])
    weights_TE, chosen_TE = hash_weights(torch.tensor([1, 0, 1]), table_VK, 4)
    assert weights_TE.tolist() == [[0, 0.5, 0, 0.5], [0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]
    assert torch.equal(chosen_TE, weights_TE > 0)
