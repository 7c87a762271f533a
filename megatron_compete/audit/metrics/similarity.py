"""How alike experts are: cosines of their outputs, of their weights, of the router's rows.

T tokens, E experts, N entries of a row, H hidden size.
"""

import torch
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32

TOKENS = 64
"""Of a product in fp32; the sum of these products is in fp64."""

ENTRIES = 2**18
"""The same for rows."""


def off_diagonal_mean(matrix_EE: Tensor) -> float:
    """Mean over all pairs of two experts; 0 of a single expert."""
    experts = len(matrix_EE)
    if experts == 1:
        return 0.0
    matrix_EE = matrix_EE.double()
    return float(matrix_EE.sum() - matrix_EE.diagonal().sum()) / (experts * (experts - 1))


def cosines(rows_EN: Tensor) -> Tensor:
    """Cosine of each pair of rows, fp64 [E, E], -1 to 1; 0 beside a row of zeros.

    Args:
        rows_EN: any float dtype; read in pieces, so that weights need no second copy.
    """
    least_E1, most_E1 = torch.aminmax(rows_EN, dim=1, keepdim=True)
    largest_E1 = _divisor(at_least_fp32(torch.maximum(-least_E1, most_E1)))
    products_EE = torch.zeros(len(rows_EN), len(rows_EN), dtype=torch.float64, device=rows_EN.device)
    for piece in rows_EN.split(ENTRIES, dim=1):
        scaled = at_least_fp32(piece) / largest_E1
        products_EE += scaled @ scaled.T
    norms_E = products_EE.diagonal().sqrt()
    found_EE = products_EE / _divisor(norms_E[:, None] * norms_E)
    return ((found_EE + found_EE.T) / 2).clamp_(-1.0, 1.0)


def output_cosines(outputs_ETH: Tensor) -> Tensor:
    """Cosine of each pair of experts' outputs for a token, summed over the tokens, fp64 [E, E].

    The caller adds the sums of chunks and divides by all tokens.

    Args:
        outputs_ETH: any float dtype. A token's output of zeros has a cosine of 0 with all.
    """
    experts = len(outputs_ETH)
    sums_EE = torch.zeros(experts, experts, dtype=torch.float64, device=outputs_ETH.device)
    for piece in outputs_ETH.split(TOKENS, dim=1):
        units = _units(at_least_fp32(piece)).reshape(experts, -1)  # the sum over tokens is part of one product
        sums_EE += units @ units.T
    return (sums_EE + sums_EE.T) / 2


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values over their sum (Roy and Vetterli 2007): 1 to the rank; 0 of zeros."""
    values = torch.linalg.svdvals(matrix.double())
    if float(values[0]) == 0:
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


def _units(vectors: Tensor) -> Tensor:
    """Vectors of the last axis at length 1; scaled first, since squares of small entries are 0 in fp32."""
    scaled = vectors / _divisor(vectors.abs().amax(-1, keepdim=True))
    return scaled / _divisor(torch.linalg.vector_norm(scaled, dim=-1, keepdim=True))


def _divisor(values: Tensor) -> Tensor:
    """`values` with 1 for 0."""
    return values.masked_fill(values == 0, 1.0)
