"""Which experts tokens go to: load, entropy, margin, pairs, and what an expert tells of the domain.

T tokens, E experts, K experts of a token, D domains.
"""

import math

import torch
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32

DEAD = 0.01
"""Of an even share: an expert with less is dead."""


def load_counts(choices_TK: Tensor, experts: int) -> Tensor:
    """How many tokens have each expert, fp64 [E]."""
    return torch.bincount(choices_TK.flatten(), minlength=experts).double()


def dead_experts(load_E: Tensor) -> list[int]:
    """Experts with less than a hundredth of an even share of `load_E`, counts or shares; all where nothing is counted."""
    least = float(load_E.double().sum()) * DEAD / len(load_E)
    return ((load_E < least) | (load_E == 0)).nonzero().flatten().tolist()


def normalized_entropy(counts: Tensor) -> Tensor:
    """Entropy over the last axis, as a share of that of even counts: 0 all in one, 1 evenly spread.

    Args:
        counts: counts, shares or scores [..., E], not negative; they need not sum to 1.
    Returns:
        [...] in fp32, or in fp64 if the counts are. 0 where nothing is counted; 1 where something is and E is 1, as one
        expert's load is even.
    """
    counts = at_least_fp32(counts)
    total = counts.sum(-1)
    if counts.shape[-1] == 1:
        return (total > 0).to(counts.dtype)
    # H = log n - sum c log c / n: no pass for the shares.
    tiny = torch.finfo(counts.dtype).tiny
    logs = counts.clamp_min(tiny).log_().mul_(counts).sum(-1)
    entropy = (total.clamp_min(tiny).log() - logs / total.clamp_min(tiny)) / math.log(counts.shape[-1])
    return (entropy * (total > 0)).clamp(0.0, 1.0)


def mutual_information(counts_DE: Tensor) -> float:
    """What an assignment's expert tells of its domain, bits: the plug-in estimate less its bias, at least 0.

    I = sum n_de / n log2(n_de n / (n_d n_e)) is too large in a finite sample, by (C - D - E + 1) / (2 n ln 2) to first
    order, with C pairs, D domains and E experts that occur at all (Miller 1955; Panzeri and Treves 1996).

    Args:
        counts_DE: assignments of each domain to each expert.
    """
    joint_DE = counts_DE.double()
    total = float(joint_DE.sum())
    if total == 0:
        return 0.0
    by_domain_D, by_expert_E = joint_DE.sum(1), joint_DE.sum(0)
    counts = (joint_DE, by_domain_D, by_expert_E)
    pairs, domains, experts = (float(torch.xlogy(count, count).sum()) for count in counts)
    plug_in = (pairs - domains - experts) / total + math.log(total)
    seen_pairs, seen_domains, seen_experts = (int((count > 0).sum()) for count in counts)
    bias = (seen_pairs - seen_domains - seen_experts + 1) / (2 * total)
    return max(0.0, (plug_in - bias) / math.log(2))


def coactivation(choices_TK: Tensor, experts: int) -> Tensor:
    """Tokens that have both experts of a pair, fp64 [E, E]; on the diagonal those that have the expert.

    A histogram of the K^2 pairs of each token: exact, and its cost does not depend on E as a product of one-hot rows does.
    """
    pairs_TKK = choices_TK[:, :, None] * experts + choices_TK[:, None, :]
    counts = torch.bincount(pairs_TKK.flatten(), minlength=experts * experts)
    return counts.view(experts, experts).double()


def coactivation_rates(counts_EE: Tensor) -> Tensor:
    """Share of the row's tokens that have the column's expert too, fp64 [E, E] (OLMoE, arXiv 2409.02060, section 5.2).

    Args:
        counts_EE: as `coactivation` gives them.
    Returns:
        0 on the diagonal, and in rows of experts that were never chosen.
    """
    counts_EE = counts_EE.double()
    rates_EE = counts_EE / counts_EE.diagonal().clamp_min(1.0)[:, None]
    return rates_EE.fill_diagonal_(0.0)


def top_pairs(matrix_EE: Tensor, most: int = 5, symmetric: bool = False) -> list[tuple[int, int, float]]:
    """The pairs of two experts with the largest entries, largest first: row, column, entry.

    Args:
        symmetric: each pair once, the lower number first.
    Returns:
        `most` at most. Of equal entries the one of lower numbers comes first; what is not a number is left out.
    """
    found_EE = matrix_EE.double().nan_to_num(nan=-math.inf).fill_diagonal_(-math.inf)
    if symmetric:
        found_EE = found_EE.masked_fill(torch.ones_like(found_EE, dtype=torch.bool).tril(), -math.inf)
    entries, places = found_EE.flatten().sort(descending=True, stable=True)
    experts = len(matrix_EE)
    best = zip(places[:most].tolist(), entries[:most].tolist())
    return [(place // experts, place % experts, entry) for place, entry in best if entry > -math.inf]


def margins(scores_TE: Tensor, choices_TK: Tensor) -> Tensor:
    """How clear each choice is, [T]: score of the last chosen expert less that of the best one left out.

    Args:
        scores_TE: the router's, not negative; each token's are brought to sum 1 first.
    Returns:
        Negative where an expert bias or groups chose against the scores; 0 where no expert is left out.
    """
    scores_TE = at_least_fp32(scores_TE)
    if choices_TK.shape[1] == scores_TE.shape[1]:
        return scores_TE.new_zeros(len(scores_TE))
    chosen_T = scores_TE.gather(1, choices_TK).amin(1)
    left_out_T = scores_TE.scatter(1, choices_TK, -1.0).amax(1)
    return (chosen_T - left_out_T) / scores_TE.sum(1).clamp_min(torch.finfo(scores_TE.dtype).tiny)
