"""Running means of the thresholds that routers keep between steps."""

from torch import Tensor


def running_mean(mean: Tensor, value: Tensor, count: Tensor, decay: float) -> Tensor:
    """Exponential moving average with bias correction: weights `decay`^age, normalised to sum to 1.

    The first value is taken whole, the second counts for 1 / (1 + decay) of the mean, and so on: a mean that began long
    ago moves by 1 - decay. (The usual form divides the plain average from 0 by 1 - decay^n; this is the same number.)

    Args:
        mean: of the values so far; any where `count` is 1.
        value: the latest.
        count: values with the latest, from 1.
    """
    return mean.lerp(value, (1 - decay) / (1 - decay**count))
