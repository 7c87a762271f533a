"""The losses of competition routing (CompeteSMoE, arXiv 2505.13380, section 3), of its language and its vision half.

T tokens, E experts, K winners a token, H hidden size; S positions of each of B sequences, T = S * B. Each takes a mask of
the tokens that count (`valid_T`, None for all: padding counts in no loss) and returns a scalar in fp32. Each is a mean over
the tokens it is given, but for `top1_balance_loss`, a mean of means over sequences; how it is scaled when tokens are split
over ranks is `moe/`'s affair.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32


def token_mean(values: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """Mean over the first axis of `values` [T, ...], over the valid tokens alone; 0 where there are none."""
    if valid_T is None:
        return values.sum(dim=0) / max(values.shape[0], 1)
    mask = valid_T.to(values.dtype)
    return torch.tensordot(mask, values, dims=1) / mask.sum().clamp_min(1.0)


def distillation_target(scores_TE: Tensor, temperature: float = 1.0, standardize: bool = False) -> Tensor:
    """q = softmax(s / temperature) over all experts, detached: what L_D draws the router towards.

    Args:
        scores_TE: s, what the winners were chosen by: responses, as in the paper, or centred responses.
        temperature: 1 in the paper.
        standardize: not in the paper: first bring every token's scores to mean 0 and standard deviation 1 over the experts. At
            initialisation plain responses differ so little that their softmax is all but uniform.
    """
    scores_TE = scores_TE.detach()
    if standardize:
        deviation = scores_TE.std(dim=-1, keepdim=True, unbiased=False)
        scores_TE = (scores_TE - scores_TE.mean(dim=-1, keepdim=True)) / deviation.clamp_min(1e-6)
    return (scores_TE / temperature).softmax(dim=-1)


def mse_distillation(
    probs_TE: Tensor, target_TE: Tensor, winners_TK: Tensor, winner_coeff: float, valid_T: Tensor | None = None
) -> Tensor:
    """L_D = mse(p, q) + winner_coeff * mse(p[winners], q[winners]), means over experts and then over tokens (CompeteSMoE)."""
    distance_TE = (probs_TE - target_TE).square()
    over_winners_T = distance_TE.gather(1, winners_TK).mean(dim=-1)
    return token_mean(distance_TE.mean(dim=-1) + winner_coeff * over_winners_T, valid_T)


def kl_distillation(
    probs_TE: Tensor, target_TE: Tensor, winners_TK: Tensor, winner_coeff: float, valid_T: Tensor | None = None
) -> Tensor:
    """KL(q || p) + winner_coeff * KL(q_W || p_W), where _W is renormalised over the winners; not in the paper."""
    p_TK, q_TK = probs_TE.gather(1, winners_TK), target_TE.gather(1, winners_TK)
    over_winners_T = _kl(q_TK / q_TK.sum(dim=-1, keepdim=True), p_TK / p_TK.sum(dim=-1, keepdim=True))
    return token_mean(_kl(target_TE, probs_TE) + winner_coeff * over_winners_T, valid_T)


def _kl(q: Tensor, p: Tensor) -> Tensor:
    """sum q log(q / p) over the last axis."""
    return (torch.xlogy(q, q) - torch.xlogy(q, p.clamp_min(torch.finfo(p.dtype).tiny))).sum(dim=-1)


DISTILLATIONS = {"mse": mse_distillation, "kl": kl_distillation}
"""The distances that `--compete-distill-loss` can name."""


def diversity_loss(outputs_TKH: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """L_div = mean over tokens of 1 / (K(K-1)) sum_{i != j} cos(y_i, y_j), over a token's winners (CompeteSMoE).

    The paper's mean over pairs; the authors' code divides by K^2. With unit vectors u_k the sum over the
    pairs is |sum_k u_k|^2 - sum_k |u_k|^2, which needs no [T, K, K] tensor.
    """
    num_winners = outputs_TKH.shape[1]
    if num_winners == 1:
        return at_least_fp32(outputs_TKH).new_zeros(())
    units_TKH = F.normalize(at_least_fp32(outputs_TKH), dim=-1)
    pairs_T = units_TKH.sum(dim=1).square().sum(dim=-1) - units_TKH.square().sum(dim=(1, 2))
    return token_mean(pairs_T, valid_T) / (num_winners * (num_winners - 1))


def entropy_balance_loss(
    probs_TE: Tensor,
    valid_T: Tensor | None = None,
    mean_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """sum_e m_e log m_e with m the mean over tokens of `probs_TE`: least where all experts are used alike.

    The authors' load balance: of the router's p at normal steps, of softmax(s) at competing ones, where their code applies
    the softmax twice and this one once.

    Args:
        probs_TE: rows that sum to 1.
        mean_over_ranks: averages a vector [E] over the ranks that hold the other tokens of this microbatch (tensor and
            context parallel ranks), without gradient. The loss is then that of the whole microbatch, and its gradient
            here is that of this rank's tokens times the number of ranks.
    """
    mean_E = token_mean(at_least_fp32(probs_TE), valid_T)
    if mean_over_ranks is not None:
        mean_E = mean_E + (mean_over_ranks(mean_E.detach()) - mean_E.detach())
    return torch.xlogy(mean_E, mean_E.clamp_min(torch.finfo(torch.float32).tiny)).sum()


def top1_balance_loss(
    shares_SBE: Tensor,
    first_SB: Tensor,
    valid_SB: Tensor | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """E * sum_e P_e * f_e of each sequence, mean over sequences: 1 where all experts are used alike.

    The load balance of the authors' vision code, a sequence being the patches of an image: P_e is the mean of the shares
    over the sequence's tokens, f_e the part of its tokens whose first choice is e (Switch Transformer, arXiv 2101.03961,
    counts so). Of the router's p at normal steps, of softmax(s) and the first winners at competing ones.

    Args:
        shares_SBE: rows that sum to 1.
        first_SB: the expert that a token is sent to before others, int64; no gradient flows through it.
        valid_SB: a sequence without a valid token is none.
        sum_over_ranks: adds up values [B, 2E] over the ranks that hold the other tokens of these sequences, without
            gradient. The loss is then that of the whole sequences, and gradients add up over those ranks.
    """
    shares_SBE = at_least_fp32(shares_SBE)
    num_experts = shares_SBE.shape[-1]
    mask_SB = torch.ones_like(first_SB) if valid_SB is None else valid_SB
    mask_SB = mask_SB.to(shares_SBE.dtype)
    sums_BE = (shares_SBE * mask_SB.unsqueeze(-1)).sum(dim=0)
    counts_BE = torch.zeros_like(sums_BE).scatter_add(1, first_SB.T, mask_SB.T)
    if sum_over_ranks is not None:
        whole_B2E = sum_over_ranks(torch.cat([sums_BE.detach(), counts_BE], dim=-1))
        whole_BE, counts_BE = whole_B2E.chunk(2, dim=-1)
        sums_BE = sums_BE + (whole_BE - sums_BE.detach())
    tokens_B1 = counts_BE.sum(dim=-1, keepdim=True)
    balance_B = num_experts * (sums_BE * counts_BE / tokens_B1.square().clamp_min(1.0)).sum(dim=-1)
    return balance_B.sum() / (tokens_B1 > 0).sum().clamp_min(1)


def router_z_loss(logits_TE: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """Mean over tokens of (log sum_e exp z_e)^2, which keeps logits small (ST-MoE, arXiv 2202.08906, eq. 5).

    The authors' vision code has it at normal steps; Megatron's `z_loss_func` is the same mean.
    """
    return token_mean(at_least_fp32(logits_TE).logsumexp(dim=-1).square(), valid_T)
