"""Use of experts against loops over tokens, scipy's entropy, and cases worked out by hand."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from megatron_compete.audit.metrics.use import (
    coactivation,
    coactivation_rates,
    dead_experts,
    load_counts,
    margins,
    mutual_information,
    normalized_entropy,
    top_pairs,
)
from tests.audit.metrics.draws import draw_choices, draw_scores


def test_load_counts_every_token_of_an_expert() -> None:
    choices_TK = draw_choices(200, experts=7, top_k=3)
    counted = Counter(choices_TK.flatten().tolist())
    found_E = load_counts(choices_TK, 9)  # two experts more than were ever chosen
    assert found_E.dtype == torch.float64
    assert found_E.tolist() == [counted[expert] for expert in range(9)]


def test_an_expert_below_a_hundredth_of_an_even_share_is_dead() -> None:
    load_E = torch.tensor([0.5, 0.4960, 0.0026, 0.0014, 0.0])  # an even share is 0.2
    assert dead_experts(load_E) == [3, 4]
    assert dead_experts(load_E * 10_000) == [3, 4]
    assert dead_experts(torch.ones(4)) == []
    assert dead_experts(torch.zeros(3)) == [0, 1, 2]
    assert dead_experts(torch.tensor([7.0])) == []


def test_entropy_is_that_of_the_shares_over_an_even_ones() -> None:
    counts = torch.from_numpy(np.random.default_rng(0).integers(0, 50, (3, 4, 6))).double()
    expected = stats.entropy(counts.numpy(), axis=-1) / math.log(6)
    torch.testing.assert_close(normalized_entropy(counts), torch.from_numpy(expected))
    torch.testing.assert_close(normalized_entropy(counts.float()), torch.from_numpy(expected).float())


def test_entropy_at_its_ends() -> None:
    counts = torch.tensor([[0, 0, 9], [4, 4, 4], [0, 0, 0]])
    assert normalized_entropy(counts).tolist() == [0.0, 1.0, 0.0]
    assert normalized_entropy(torch.tensor([[5.0], [0.0]])).tolist() == [1.0, 0.0]
    tiny = torch.tensor([1e-30, 1e-30])
    assert normalized_entropy(tiny).item() == pytest.approx(1.0, abs=1e-5)


def reference_information(counts_DE: np.ndarray) -> float:
    """I = H(domain) + H(expert) - H(pair), each entropy with Miller and Madow's (cells that occur - 1) / 2n; bits."""

    def entropy(counts: np.ndarray) -> float:
        return float(stats.entropy(counts.ravel())) + ((counts > 0).sum() - 1) / (2 * counts.sum())

    return (entropy(counts_DE.sum(1)) + entropy(counts_DE.sum(0)) - entropy(counts_DE)) / math.log(2)


def test_information_is_that_of_entropies_by_miller_and_madow() -> None:
    counts_DE = np.array([[40, 3, 0, 9], [2, 50, 0, 8], [5, 5, 0, 60]])
    expected = reference_information(counts_DE)
    assert expected > 0.4
    assert mutual_information(torch.from_numpy(counts_DE)) == pytest.approx(expected, rel=1e-12)


def test_information_of_experts_that_know_the_domain_and_of_those_that_do_not() -> None:
    known = torch.eye(4) * 1_000_000
    assert mutual_information(known) == pytest.approx(2.0, abs=1e-5)
    assert mutual_information(torch.ones(4, 8) * 1000) == 0.0
    assert mutual_information(torch.zeros(2, 3)) == 0.0
    assert mutual_information(torch.ones(1, 5)) == 0.0


def test_the_bias_of_a_finite_sample_is_taken_off() -> None:
    """Of domains that say nothing the plug-in estimate is (D - 1)(E - 1) / (2 n ln 2) = 0.15 on average."""
    random = np.random.default_rng(0)
    samples = [torch.from_numpy(random.multinomial(1000, np.full(128, 1 / 128)).reshape(8, 16)) for _ in range(200)]
    mean = float(np.mean([mutual_information(sample) for sample in samples]))
    assert mean < 0.01


def test_what_domains_by_chance_say_of_experts_is_what_the_guide_says() -> None:
    """Sequences have loads of their own, domains are dealt: (D - 1) / (S - 1) of what a sequence says of the expert."""
    random = np.random.default_rng(0)
    sequences, domains, experts = 64, 4, 16
    domain_S = torch.arange(sequences) % domains
    found, expected = [], []
    for _ in range(100):
        loads = random.dirichlet(np.full(experts, 5.0), sequences)
        counts_SE = torch.from_numpy(np.stack([random.multinomial(2048, load) for load in loads])).double()
        counts_DE = torch.zeros(domains, experts, dtype=torch.float64).index_add_(0, domain_S, counts_SE)
        found.append(mutual_information(counts_DE))
        entropy = float(normalized_entropy(counts_SE.sum(0)) - normalized_entropy(counts_SE).mean())
        expected.append((domains - 1) / (sequences - 1) * entropy * math.log2(experts))
    assert np.mean(found) == pytest.approx(np.mean(expected), rel=0.1)
    assert np.mean(found) > 0.005


def test_pairs_are_counted_as_a_loop_counts_them() -> None:
    choices_TK = draw_choices(100, experts=6, top_k=3, seed=1)
    expected = torch.zeros(6, 6, dtype=torch.float64)
    for token in choices_TK.tolist():
        for one, other in permutations(token, 2):
            expected[one, other] += 1
        for one in token:
            expected[one, one] += 1
    found_EE = coactivation(choices_TK, 6)
    assert found_EE.dtype == torch.float64 and torch.equal(found_EE, expected)
    assert torch.equal(found_EE.diagonal(), load_counts(choices_TK, 6))


def test_rates_are_of_the_rows_tokens() -> None:
    """Expert 0 has four tokens, three with 1; expert 1 has three, all with 0; expert 3 has none."""
    counts_EE = coactivation(torch.tensor([[0, 1], [1, 0], [0, 1], [0, 2]]), 4)
    kept_EE = counts_EE.clone()
    rates_EE = coactivation_rates(counts_EE)
    assert rates_EE.tolist() == [[0, 0.75, 0.25, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(counts_EE, kept_EE)


def test_top_pairs() -> None:
    matrix_EE = torch.tensor([[9.0, 0.5, 0.2], [0.7, 9.0, 0.2], [0.1, math.nan, 9.0]], dtype=torch.float64)
    assert top_pairs(matrix_EE, most=3) == [(1, 0, 0.7), (0, 1, 0.5), (0, 2, 0.2)]
    assert top_pairs(matrix_EE) == [(1, 0, 0.7), (0, 1, 0.5), (0, 2, 0.2), (1, 2, 0.2), (2, 0, 0.1)]
    assert top_pairs(matrix_EE, most=2, symmetric=True) == [(0, 1, 0.5), (0, 2, 0.2)]
    assert top_pairs(-torch.ones(3, 3), symmetric=True) == [(0, 1, -1.0), (0, 2, -1.0), (1, 2, -1.0)]
    assert top_pairs(torch.ones(1, 1)) == []


def test_margin_is_last_chosen_less_best_left_out() -> None:
    scores_TE = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    choices_TK = torch.tensor([[1, 0], [0, 3], [0, 1]])  # the second is against the scores
    torch.testing.assert_close(margins(scores_TE, choices_TK), torch.tensor([0.1, -0.2, 0.0]))
    assert margins(scores_TE[:, :2], choices_TK[[0, 2]][:1].repeat(3, 1)).tolist() == [0.0, 0.0, 0.0]


def test_margins_of_drawn_scores() -> None:
    scores_TE = draw_scores(50, experts=8)
    choices_TK = draw_choices(50, experts=8, top_k=3)
    expected = []
    for scores, choices in zip(scores_TE.tolist(), choices_TK.tolist()):
        left_out = [score for expert, score in enumerate(scores) if expert not in choices]
        expected.append((min(scores[expert] for expert in choices) - max(left_out)) / sum(scores))
    torch.testing.assert_close(margins(scores_TE, choices_TK), torch.tensor(expected))
    torch.testing.assert_close(margins(scores_TE * 7, choices_TK), torch.tensor(expected))


COUNTS = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.integers(0, 10**6))


@settings(deadline=None)
@given(COUNTS, st.integers(1, 1000))
def test_entropy_is_a_share_that_scale_and_order_do_not_change(counts: np.ndarray, scale: int) -> None:
    counts_DE = torch.from_numpy(counts).double()
    found = normalized_entropy(counts_DE)
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(normalized_entropy(counts_DE * scale), found, rtol=0, atol=1e-9)
    torch.testing.assert_close(normalized_entropy(counts_DE.flip(-1)), found, rtol=0, atol=1e-9)


@settings(deadline=None)
@given(COUNTS)
def test_information_is_within_its_bounds(counts: np.ndarray) -> None:
    counts_DE = torch.from_numpy(counts).double()
    found = mutual_information(counts_DE)
    bound = min(math.log2(size) for size in counts.shape)
    assert 0 <= found <= bound + 1e-9 + counts.size / max(1, 2 * counts.sum() * math.log(2))
    assert mutual_information(counts_DE.T) == pytest.approx(found, abs=1e-9)
    if counts.sum():
        assert found == pytest.approx(max(0.0, reference_information(counts)), abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_rates_of_a_row_sum_to_the_other_experts_of_a_token(tokens: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    choices_TK = draw_choices(tokens, experts, top_k, data.draw(st.integers(0, 1000)))
    counts_EE = coactivation(choices_TK, experts)
    assert torch.equal(counts_EE, counts_EE.T)
    sums_E = coactivation_rates(counts_EE).sum(1)
    expected_E = (load_counts(choices_TK, experts) > 0).double() * (top_k - 1)
    torch.testing.assert_close(sums_E, expected_E)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(2, 12), st.data())
def test_a_choice_by_score_has_a_margin_and_no_other_a_larger_one(
    tokens: int, experts: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, experts - 1))
    seed = data.draw(st.integers(0, 1000))
    scores_TE = draw_scores(tokens, experts, seed)
    best_T = margins(scores_TE, scores_TE.topk(top_k, dim=1).indices)
    assert ((best_T >= 0) & (best_T <= 1)).all()
    other_T = margins(scores_TE, draw_choices(tokens, experts, top_k, seed))
    assert (other_T <= best_T).all() and (other_T >= -1).all()
