"""Expert-Threshold routing: every expert takes the tokens whose logit reaches a threshold of its own.

Source: Sun, Liu, Wu, Sun 2026, "Expert Threshold Routing for Autoregressive Language Modeling with Dynamic Computation
Allocation and Load Balancing", arXiv 2603.11535. T tokens, E experts, K experts per token on average.

The threshold of expert e is a running mean of what would have given it its share of the tokens so far, K/E of them:
expert choice against the population instead of against the batch, hence causal. The load is balanced in expectation
without a loss; an expert that nobody takes still sees all logits, and its threshold comes down to them.
"""

from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32


def expert_weights(logits_TE: Tensor) -> Tensor:
    """Weights of an expert's output: sigmoid of its logit, not normalised over a token's experts."""
    return at_least_fp32(logits_TE).sigmoid()


def expert_thresholds(logits_TE: Tensor, topk: int) -> Tensor:
    """By expert its T K/E-th largest logit, [E]: what gives each K/E of these tokens, to the nearest whole number of them.

    Ties apart, that many logits reach it. T must be 1 or more.
    """
    num_tokens, num_experts = logits_TE.shape
    share = min(max(round(num_tokens * topk / num_experts), 1), num_tokens)
    return at_least_fp32(logits_TE).topk(share, dim=0, sorted=False).values.amin(dim=0)
