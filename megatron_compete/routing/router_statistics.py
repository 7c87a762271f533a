"""What a router does with a set of tokens, whatever kind of router: decision margin, entropy, co-activation, saturation.

T tokens, E experts, K experts a token. Everything is read off the router's probabilities and the map of where tokens went.
"""

import base64
import zlib

import numpy as np
import torch
from torch import Tensor


def decision_margin(probs_TE: Tensor, top_k: int) -> Tensor:
    """How clear the choice is: the K-th largest probability minus the next one, [T]; 0 where all are taken."""
    if top_k >= probs_TE.shape[1]:
        return torch.zeros(len(probs_TE))
    ordered_TK = probs_TE.topk(top_k + 1, dim=-1).values
    return ordered_TK[:, top_k - 1] - ordered_TK[:, top_k]


def router_entropy(probs_TE: Tensor) -> Tensor:
    """Entropy of the router's probabilities over all experts, nats [T]."""
    return torch.special.entr(probs_TE).sum(dim=-1)


def pair_counts(map_TE: Tensor) -> Tensor:
    """Tokens that went to both experts of a pair, [E, E]; on the diagonal each expert's own."""
    went_TE = map_TE.double()
    return went_TE.T @ went_TE


def coactivation(pairs_EE: Tensor) -> float:
    """Share of an expert's tokens that it has in common with its most frequent companion, mean over experts.

    The co-activation of OLMoE (arXiv 2409.02060, section 5.2). Independent experts give (K - 1) / (E - 1).

    Args:
        pairs_EE: as `pair_counts` gives them; experts without a token are left out, 0 if all are.
    """
    own_E = pairs_EE.diagonal()
    others_EE = pairs_EE - torch.diag(own_E)
    used = own_E > 0
    if not used.any():
        return 0.0
    return float((others_EE[used].amax(dim=1) / own_E[used]).mean())


def pack_choices(map_LNE: Tensor) -> str:
    """Chosen experts of N tokens in L layers, bool [L, N, E], as a short text."""
    return base64.b64encode(zlib.compress(np.packbits(map_LNE.numpy()).tobytes(), 9)).decode()


def unpack_choices(text: str, shape: tuple[int, int, int]) -> np.ndarray:
    """What `pack_choices` packed, bool [L, N, E]."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)


def shared_choices(one_LNE: np.ndarray, other_LNE: np.ndarray) -> float:
    """Share of the other's choices that one has made too: 1 where both are the same.

    With the last checkpoint as `other`, this is the router saturation of OLMoE (arXiv 2409.02060, section 5.1).
    """
    return float((one_LNE & other_LNE).sum() / max(1, other_LNE.sum()))
