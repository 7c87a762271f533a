"""How alike experts are: cosines of their outputs, of their weights, of the router's rows.

T tokens, E experts, N entries of a row, H hidden size.
"""

import torch
from torch import Tensor

from megatron_compete.routing.precision import at_least_fp32

TOKENS = 16
"""Whose [E, E] products in fp32 are there at a time."""

ENTRIES = 2**16
"""Of a row that go into one product in fp32; the sum of these products is in fp64."""


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
        rows_EN: any float dtype; read in pieces, so that weights need no second copy. Lengths from 1e-15 to 1e15: squares
            are in fp32, which ends at 1e-38 and 1e38.
    """
    products_EE = torch.zeros(len(rows_EN), len(rows_EN), dtype=torch.float64, device=rows_EN.device)
    for piece in rows_EN.split(ENTRIES, dim=1):
        values = at_least_fp32(piece)
        products_EE += values @ values.T
    found_EE = _over_lengths(products_EE)
    return ((found_EE + found_EE.T) / 2).clamp_(-1.0, 1.0)


def cosines_between(rows_EN: Tensor, others_FN: Tensor) -> Tensor:
    """Cosine of each row with each of the others, fp64 [E, F], -1 to 1; as `cosines`, on one device."""
    products_EF = torch.zeros(len(rows_EN), len(others_FN), dtype=torch.float64, device=rows_EN.device)
    squares_E, squares_F = products_EF.new_zeros(len(rows_EN)), products_EF.new_zeros(len(others_FN))
    for pieces in zip(rows_EN.split(ENTRIES, dim=1), others_FN.split(ENTRIES, dim=1)):
        values, others = map(at_least_fp32, pieces)
        products_EF += values @ others.T
        squares_E += values.square().sum(1)
        squares_F += others.square().sum(1)
    return (products_EF * _inverse_root(squares_E)[:, None] * _inverse_root(squares_F)).clamp_(-1.0, 1.0)


def output_cosines(outputs_ETH: Tensor) -> Tensor:
    """Cosine of each pair of experts' outputs for a token, summed over the tokens, fp64 [E, E].

    The caller adds the sums of chunks and divides by all tokens.

    Args:
        outputs_ETH: any float dtype, lengths as for `cosines`. A token's output of zeros has a cosine of 0 with all.
    """
    experts = len(outputs_ETH)
    sums_EE = torch.zeros(experts, experts, dtype=torch.float64, device=outputs_ETH.device)
    for piece in outputs_ETH.split(TOKENS, dim=1):
        values_tEH = at_least_fp32(piece).transpose(0, 1)
        # Products first: they are H / E times smaller than the outputs, and hold the lengths.
        sums_EE += _over_lengths(values_tEH @ values_tEH.mT).sum(0, dtype=torch.float64)
    return (sums_EE + sums_EE.T) / 2


def effective_rank(matrix: Tensor) -> float:
    """exp of the entropy of the singular values over their sum (Roy and Vetterli 2007): 1 to the rank; 0 of zeros."""
    values = torch.linalg.svdvals(matrix.double())
    if float(values[0]) == 0:
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


def _over_lengths(products: Tensor) -> Tensor:
    """Cosines of products [..., E, E] of vectors, whose squared lengths are on the diagonal; 0 where one is 0."""
    inverse = _inverse_root(products.diagonal(dim1=-2, dim2=-1))
    return products * inverse[..., :, None] * inverse[..., None, :]


def _inverse_root(squares: Tensor) -> Tensor:
    """1 / length; 0 for 0."""
    return squares.rsqrt().masked_fill(squares == 0, 0.0)
