"""Hash routing: a token's experts follow from its id alone, by a table that is drawn once and never learns.

Source: Roller, Sukhbaatar, Szlam, Weston 2021, "Hash Layers For Large Sparse Models", arXiv 2106.04426 (random hash). V ids,
E experts, K experts a token, T tokens.
"""

import hashlib

import torch
from torch import Tensor

ROWS = 4096
"""Ids that are drawn at a time: bounds the memory of a large vocabulary's draws."""


def hash_table(vocab_size: int, num_experts: int, topk: int, *, seed: int, layer_number: int) -> Tensor:
    """The experts of every token id: K distinct ones of E, each set of K as likely as any other.

    A pure function of its arguments, on any device and layout; a row is the same whatever the number of rows, which
    tensor parallelism pads.

    Args:
        layer_number: in the whole model; every layer has a table of its own.
    Returns:
        int64 [V, K], on the CPU.
    """
    name = hashlib.sha256(f"hash routing, seed {seed}, layer {layer_number}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(name[:4], "big"))  # torch's CPU generator reads 32 bits
    parts = []
    for _ in range(0, vocab_size, ROWS):
        parts.append(torch.rand(ROWS, num_experts, generator=random, dtype=torch.float64).topk(topk, dim=-1).indices)
    return torch.cat(parts)[:vocab_size].contiguous()


def hash_weights(ids_T: Tensor, table_VK: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Weights 1/K of the experts that the table names, and which they are.

    Returns:
        fp32 [T, E], 0 elsewhere; and the map, bool [T, E].
    """
    experts_TK = table_VK[ids_T]
    chosen_TE = torch.zeros(len(ids_T), num_experts, dtype=torch.bool, device=ids_T.device)
    chosen_TE.scatter_(1, experts_TK, True)
    return chosen_TE.float() / table_VK.shape[1], chosen_TE
