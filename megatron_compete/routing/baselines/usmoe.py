"""USMoE: one score for every pair of token and expert, and the best pairs are taken, in a form that is causal.

Source: Do, Le, Tran 2025, "Unified Sparse Mixture of Experts" (also "Rethinking Sparse Mixture of Experts from a Unified
Perspective"), arXiv 2503.22996; its score as in the authors' code for OLMoE. T tokens, E experts, K experts per token on
average.

The paper takes the T K best pairs of a sequence or a batch. Whether a token keeps an expert then depends on the scores
of later tokens: in training the router sees the future, and at decoding, where there are no later tokens, the same rule
gives every token exactly K experts, another model. Here a pair is taken if its score reaches a threshold that was
known before the sequence: the running mean, over training steps, of the T K-th largest score of a microbatch. The budget
is met on average, a token's experts depend on that token alone, and training, evaluation and decoding follow one rule.
"""

from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32


def unified_scores(logits_TE: Tensor, alpha: float) -> Tensor:
    """(1 - a) softmax(z) + a * 2 sigmoid(z) / E: what an expert is worth to a token, against its baselines and by itself.

    Both parts are about 1/E where logits are about 0, so `alpha` mixes like with like (the authors' is 0.5).

    Returns:
        fp32 [T, E], in (0, 1).
    """
    logits_TE = at_least_fp32(logits_TE)
    alone_TE = 2.0 / logits_TE.shape[-1] * logits_TE.sigmoid()
    return (1 - alpha) * logits_TE.softmax(dim=-1) + alpha * alone_TE


def budget_threshold(scores_TE: Tensor, topk: int) -> Tensor:
    """The T K-th largest score, [1]: exactly T K pairs reach it, but for ties. T must be 1 or more."""
    num_pairs = scores_TE.shape[0] * topk
    return scores_TE.flatten().topk(num_pairs, sorted=False).values.amin(dim=0, keepdim=True)
