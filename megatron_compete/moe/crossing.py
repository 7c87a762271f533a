"""How gradients come back from `postprocess` to `route`.

Megatron's EP-overlap schedule (upstream: `models/gpt/fine_grained_callables.py`) cuts a layer into nodes, each with an
autograd graph of its own: the node of `route` ends with the tokens and probabilities that it hands to the dispatcher,
the node of `postprocess` begins with the rows that come back. A tensor that went from one to the other past them would
tie the two graphs together, and the second backward pass through the first graph fails. So such tensors go over without
their graph; in the backward pass `postprocess` leaves their gradients here, and `route`'s own backward pass takes them
up. Under every other schedule the same happens within one graph.
"""

from typing import Any

import torch
from torch import Tensor


class Crossing:
    """One microbatch's tensors on their way from a layer's `route` to its `postprocess`, and their gradients back."""

    def __init__(self) -> None:
        self._tensors: tuple[Tensor, ...] = ()
        self._grads: tuple[Tensor | None, ...] = ()

    def depart(self, probs_TE: Tensor, *tensors: Tensor) -> Tensor:
        """The routing probabilities [T, E] unchanged; their backward pass also sends `tensors` the gradients that
        `arrive` was left with. Experts weight by the probabilities, so it comes after that of `postprocess`."""
        self._tensors = tuple(tensor.detach() for tensor in tensors)
        return _Depart.apply(self, probs_TE, *tensors)

    def arrive(self, output: Tensor) -> tuple[Tensor, ...]:
        """What the experts gave, unchanged, and the tensors that departed.

        They come out of one autograd function: none of its gradients leaves before all have arrived, so those of the
        tensors are here before that of `output` reaches the experts.
        """
        arrived: tuple[Tensor, ...] = _Arrive.apply(self, output, *self._tensors)
        self._tensors = ()
        return arrived

    def take_gradients(self) -> tuple[Tensor | None, ...]:
        """Gradients of `arrive`'s results, once; None for a tensor that the loss does not depend on."""
        grads, self._grads = self._grads, ()
        return grads


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crossing: Crossing, probs_TE: Tensor, *tensors: Tensor) -> Tensor:
        ctx.crossing = crossing
        return probs_TE.view_as(probs_TE)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        _, *grads = ctx.crossing.take_gradients()
        return None, *grad_outputs, *grads


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crossing: Crossing, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.crossing = crossing
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.crossing._grads = grad_outputs
        grad_output, *others = grad_outputs
        return None, grad_output, *(None for _ in others)
