"""How many tokens of a microbatch the training loss counts, which losses of routers have to know.

Under `--calculate-per-token-loss` Megatron divides all gradients by the tokens that the loss counts in the global batch. A
router's own losses are means over a microbatch's tokens, L_m, and what is left of them should be the mean over microbatches
by what each counts, sum_m n_m L_m / sum_m n_m. So each is to be multiplied by the n_m of its microbatch. Megatron's routers,
and ours where nobody says more, take the layer's tokens for n_m: the same where every token counts, and too much where
prompts or ends of documents are masked, or where the layer's tokens are patches of images.

A trainer whose data have masks calls `set_loss_tokens` for each microbatch, on every pipeline stage, before the model runs.
"""

from collections import deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_compete.moe.gradients import AlsoReaching, Weighed
from megatron_compete.moe.graphs import is_capturing
from megatron_compete.upstream import Replacement, wrap_symbol

IN_FLIGHT = 4096
"""More first passes of a router than any schedule has in flight. Of layers that are frozen with all that comes before them no
pass comes back, and their counts must not pile up."""


class _Passes:
    """The counts of one router's passes.

    Under activation recompute a router runs twice: first without gradient, again in the backward pass, when the current
    count is another microbatch's. Microbatches come back in the order they went, so first passes leave theirs in a queue.
    """

    def __init__(self) -> None:
        self.latest: Tensor | None = None
        self._first: deque[Tensor] = deque(maxlen=IN_FLIGHT)

    def begin(self, count: Tensor) -> None:
        """A pass begins while `count` is the current microbatch's."""
        if is_capturing():
            self.latest = count.clone()  # a graph reads the current count whenever it runs
        elif not torch.is_grad_enabled():
            self._first.append(count.clone())
        else:
            self.latest = self._first.popleft() if self._first else count.clone()


class _LossTokens:
    """What a process knows of it."""

    def __init__(self) -> None:
        self.current: Tensor | None = None
        """Always the same tensor, which CUDA graphs read."""
        self.passes: WeakKeyDictionary[TopKRouter, _Passes] = WeakKeyDictionary()
        self.replaced: tuple[Replacement, ...] = ()

    def set(self, count: Tensor) -> None:
        """The microbatch that begins."""
        count = count.detach().float()
        if self.current is None or self.current.device != count.device:
            self.current = count.clone()
        else:
            self.current.copy_(count)
        if not self.replaced:
            self.replaced = (
                wrap_symbol("megatron.core.transformer.moe.router:TopKRouter.forward", _forward),
                wrap_symbol(
                    "megatron.core.transformer.moe.router:TopKRouter.attach_and_log_load_balancing_loss",
                    _attach_balance,
                ),
                wrap_symbol("megatron.core.transformer.moe.router:TopKRouter.apply_z_loss", _apply_z_loss),
            )


_state = _LossTokens()


def set_loss_tokens(count: Tensor) -> None:
    """Say what the loss counts of the microbatch whose forward pass comes next; losses of all routers weigh by it.

    To be called under `--calculate-per-token-loss`, for each microbatch and on every pipeline stage, with the same number on
    all ranks that share the microbatch. Without it these losses are weighed as Megatron does it.

    Args:
        count: scalar, tokens of the whole microbatch, those of other tensor and context parallel ranks included.
    """
    _state.set(count)


def forget_loss_tokens() -> None:
    """Undo every `set_loss_tokens`; for whoever trains more than once in a process."""
    global _state
    for one in _state.replaced:
        one.undo()
    _state = _LossTokens()


def loss_tokens_of(router: TopKRouter) -> Tensor | None:
    """What the loss counts of the microbatch of the router's latest pass, fp32 scalar; None where nobody has said."""
    passes = _state.passes.get(router)
    return None if passes is None or not router.calculate_per_token_loss else passes.latest


def _forward(upstream: Callable[..., Any], self: TopKRouter, *args: Any, **named: Any) -> Any:
    """`TopKRouter.forward`: a pass begins."""
    if self.training and self.calculate_per_token_loss and _state.current is not None:
        _state.passes.setdefault(self, _Passes()).begin(_state.current)
    return upstream(self, *args, **named)


def _attach_balance(upstream: Callable[..., Tensor], self: TopKRouter, *args: Any, **named: Any) -> Tensor:
    """`TopKRouter.attach_and_log_load_balancing_loss`, which multiplies by the tokens that it is told of, once for each rank
    that shares the microbatch; a rank's loss is its part of the microbatch's."""
    count = loss_tokens_of(self)
    if count is not None:
        named["valid_token_count"] = count / self.tp_cp_group.size()
    return upstream(self, *args, **named)


def _apply_z_loss(
    upstream: Callable[..., Tensor], self: TopKRouter, logits: Tensor, padding_mask: Tensor | None = None
) -> Tensor:
    """`TopKRouter.apply_z_loss`, which counts tokens itself: its gradient is what is left of them."""
    count = loss_tokens_of(self)
    attaches = self.config.moe_z_loss_coeff is not None and self.training and torch.is_grad_enabled()
    if count is None or not attaches:
        return upstream(self, logits, padding_mask)
    weighed = Weighed.apply(logits, count / _tokens_of(self, logits, padding_mask))
    attached = upstream(self, weighed, padding_mask)
    return AlsoReaching.apply(logits, attached)


def _tokens_of(router: TopKRouter, logits: Tensor, padding_mask: Tensor | None) -> Tensor | float:
    """What the z-losses of all ranks that share the microbatch are a sum over."""
    group = router.tp_cp_group
    if padding_mask is None:
        return float(max(logits.shape[0], 1) * group.size())
    tokens = (~padding_mask).sum().float()
    if group.size() > 1:
        torch.distributed.all_reduce(tokens, group=group)
    return tokens.clamp_min(1.0)
