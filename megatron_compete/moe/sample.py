"""Which of a rank's tokens compete at a step: the sample of `--compete-token-fraction`, or all of them.

T tokens of this rank, [S_local, B] flattened as Megatron's MoE layers do it, N of them that compete.
"""

from functools import lru_cache

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from numpy.typing import NDArray
from torch import Tensor

from megatron_compete.routing.sample import sample_positions


class AllTokens:
    """All of a rank's tokens compete."""

    def take(self, values_T: Tensor) -> Tensor:
        """The competing tokens' part of values [T, ...]: [N, ...]."""
        return values_T

    def put(self, others_T: Tensor | None, values_N: Tensor) -> Tensor:
        """Values [T, ...]: `values_N` [N, ...] of the tokens that compete, and the other tokens' of `others_T` [T, ...],
        None where there can be none."""
        return values_N

    def among(self, valid_T: Tensor | None) -> Tensor | None:
        """Which tokens compete and count, bool [T]; None for all."""
        return valid_T

    def beside(self, valid_T: Tensor | None) -> Tensor | None:
        """Which tokens count and do not compete, bool [T]; None where there are none by definition."""
        return None


class TokenSample(AllTokens):
    """Some of a rank's tokens compete, perhaps none.

    Args:
        tokens_N: their places among the rank's tokens, ascending, int64.
        num_tokens: T.
    """

    def __init__(self, tokens_N: Tensor, num_tokens: int) -> None:
        self.tokens_N = tokens_N
        self.mask_T = torch.zeros(num_tokens, dtype=torch.bool, device=tokens_N.device).index_fill(0, tokens_N, True)

    def take(self, values_T: Tensor) -> Tensor:
        """Of these tokens."""
        return values_T.index_select(0, self.tokens_N)

    def put(self, others_T: Tensor | None, values_N: Tensor) -> Tensor:
        """Of these tokens."""
        assert others_T is not None
        return others_T.index_copy(0, self.tokens_N, values_N.to(others_T.dtype))

    def among(self, valid_T: Tensor | None) -> Tensor | None:
        """Of these tokens."""
        return self.mask_T if valid_T is None else self.mask_T & valid_T

    def beside(self, valid_T: Tensor | None) -> Tensor | None:
        """Of these tokens."""
        return ~self.mask_T if valid_T is None else ~self.mask_T & valid_T


class TokenSampler:
    """Draws the samples of one layer.

    A rank holds one part of each sequence: under context parallelism the chunks c and 2 * size - 1 - c of 2 * size
    (upstream: `get_batch_on_this_cp_rank`), and of those under sequence parallelism one of equal pieces.

    Args:
        fraction: `--compete-token-fraction`.
        config, groups: Megatron's, of the layer.
    """

    def __init__(self, fraction: float, config: TransformerConfig, groups: ProcessGroupCollection) -> None:
        self.fraction = fraction
        self.pieces: int = groups.tp.size() if config.sequence_parallel else 1
        self.piece: int = groups.tp.rank() if config.sequence_parallel else 0
        self.parts, self.part = groups.cp.size(), groups.cp.rank()

    def draw(self, hidden_states: Tensor, *, seed: int, step: int, layer_number: int) -> AllTokens:
        """The tokens that compete among this rank's [S_local, B, H].

        Args:
            seed: of the competition schedule.
            step: iteration, from 0.
        """
        if self.fraction == 1.0:
            return AllTokens()
        length, sequences = hidden_states.shape[:2]
        positions = _drawn(self.fraction, length * self.pieces * self.parts, seed, step, layer_number)
        rows = torch.from_numpy(self._rows(positions, length)).to(hidden_states.device, non_blocking=True)
        tokens_N = (rows[:, None] * sequences + torch.arange(sequences, device=rows.device)).reshape(-1)
        return TokenSample(tokens_N, length * sequences)

    def _rows(self, positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """The places in [0, length) of this rank's rows among positions of the whole sequence, ascending."""
        of_part = positions_of_part(positions, length * self.pieces * self.parts, self.parts, self.part)
        rows: NDArray[np.int64] = of_part[of_part // length == self.piece] - self.piece * length
        return rows


def positions_of_part(positions: NDArray[np.int64], sequence_length: int, parts: int, part: int) -> NDArray[np.int64]:
    """Where in its part of the sequence a context parallel rank has the positions that it holds, ascending.

    Args:
        positions: of the whole sequence, ascending.
        parts, part: context parallel size and rank.
    """
    if parts == 1:
        return positions
    chunk_length = sequence_length // (2 * parts)
    chunk, place = np.divmod(positions, chunk_length)
    first, second = place[chunk == part], place[chunk == 2 * parts - 1 - part] + chunk_length
    return np.concatenate([first, second])


@lru_cache(maxsize=1024)
def _drawn(fraction: float, sequence_length: int, seed: int, step: int, layer_number: int) -> NDArray[np.int64]:
    """`sample_positions`, once for all microbatches of a step; not to be written to."""
    return sample_positions(fraction, sequence_length, seed=seed, step=step, layer_number=layer_number)
