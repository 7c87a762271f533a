"""A mean over tokens, and how far other sequences might move it.

S sequences.
"""

from torch import Tensor

from megatron_compete.audit.metrics.extra import scipy_module
from megatron_compete.audit.results import Interval
from megatron_compete.common.errors import CompeteError

CONFIDENCE = 0.95


def mean_interval(sums_S: Tensor, tokens_S: Tensor) -> Interval:
    """Mean over all tokens, with Student's t interval over sequences at 95%.

    Tokens of one sequence are alike, sequences are not: only these count as drawn. The mean is a ratio of two sums over
    sequences, r = sum y / sum n, and to first order it varies as the residuals y - r n do (Cochran, Sampling Techniques,
    1977, chapter 6), with S - 1 degrees of freedom. Of a difference between two runs over the same text, give the sums of
    the differences: what a sequence does to both is then no part of the interval.

    One sequence shows no spread, and JSON has no infinity: low and high are the mean itself, which is no interval at all.
    Whoever shows one must show the mean alone where there was one sequence.

    Args:
        sums_S: of the tokens' values, such as losses.
        tokens_S: how many each sequence has; those without any do not count.
    Raises:
        CompeteError: there is no token, or scipy is missing.
    """
    counted_S = tokens_S > 0
    sums_S, tokens_S = sums_S.double()[counted_S], tokens_S.double()[counted_S]
    sequences = len(sums_S)
    if sequences == 0:
        raise CompeteError("a mean over no token: the text has no token to predict, give a longer one")
    mean = float(sums_S.sum() / tokens_S.sum())
    if sequences == 1:
        return Interval(mean, mean, mean)
    residuals_S = sums_S - mean * tokens_S
    variance = float(residuals_S.square().sum() / tokens_S.sum().square()) * sequences / (sequences - 1)
    reach = float(scipy_module("stats").t.ppf((1 + CONFIDENCE) / 2, sequences - 1)) * variance**0.5
    return Interval(mean, mean - reach, mean + reach)
