"""How fast the router changes its mind, on tokens that stay the same.

T tokens, N of them in the probe, E experts, H hidden.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PROBE_TOKENS = 256


class RouterProbe(torch.nn.Module):
    """One router's inputs for a fixed set of tokens, and the experts it last chose for them.

    The tokens are the first of the first microbatch at the first console interval after start; a resumed job takes new
    ones. Neither is saved.
    """

    tokens: Tensor | None
    """[N, 1, H]"""
    chosen_NE: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tokens", None, persistent=False)
        self.register_buffer("chosen_NE", None, persistent=False)
        self.step = -1

    @torch.no_grad()
    def changes(
        self, hidden_states: Tensor, valid_T: Tensor | None, choose: Callable[[Tensor], Tensor], step: int
    ) -> tuple[Tensor, int] | None:
        """Share of the K experts of a token that are not those of the last call, and the tokens it is a mean over.

        Args:
            hidden_states: router inputs [S, B, H]; used at the first call, and for nothing afterwards.
            valid_T: mask of the tokens that count, None for all.
            choose: from router inputs [N, 1, H] to the chosen experts, bool [N, E].
            step: further microbatches of one step find the same weights and give None, as does the first call.
        """
        if step == self.step:
            return None
        self.step = step
        if self.tokens is None:
            self.tokens = _first_tokens(hidden_states, valid_T)
        before_NE, self.chosen_NE = self.chosen_NE, choose(self.tokens)
        if before_NE is None or len(before_NE) == 0:
            return None
        left_N = (before_NE & ~self.chosen_NE).sum(dim=1) / before_NE.sum(dim=1)
        return left_N.mean(), len(left_N)


def _first_tokens(hidden_states: Tensor, valid_T: Tensor | None) -> Tensor:
    tokens_TH = hidden_states.detach().flatten(0, -2)
    if valid_T is not None:
        tokens_TH = tokens_TH[valid_T]
    return tokens_TH[:PROBE_TOKENS].clone().unsqueeze(1)
