"""One tensor of Megatron's model, where a checkpoint may have it, and the Hugging Face tensors that it holds."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.forms import SAME, Form

MTP = "mtp."
"""Start of the keys of layers for multi-token prediction, which are never stacked."""


class StoredSlice(NamedTuple):
    """Where a tensor is stored: the slice of `key` that `at` indexes, whose leading axes have the sizes `stack`.

    A `*` is left in `key` where each expert has a key of its own.
    """

    key: str
    at: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()


@dataclass(frozen=True)
class Slot:
    """One tensor of Megatron's model, whatever the form in which a checkpoint has it."""

    keys: tuple[str, ...]
    """With `*` for layer and expert; several where Megatron's implementations name it differently."""
    layer: int | None = None
    expert: int | None = None
    """None where the keys have a second `*`: all experts of the layer, on the first axis."""

    def canonical(self, d: Dimensions) -> list[StoredSlice]:
        """Where Megatron's trainer stores it: once for each key."""
        return [self._forms(key, d)[0] for key in self.keys]

    def stored(self, d: Dimensions) -> list[StoredSlice]:
        """Everywhere that a checkpoint may have it: layers stacked or apart, experts stacked or apart."""
        return [one for key in self.keys for one in self._forms(key, d)]

    def _forms(self, key: str, d: Dimensions) -> list[StoredSlice]:
        if self.layer is None:
            return [StoredSlice(key)]
        in_layer, all_layers = key.replace("*", str(self.layer), 1), key.replace("*.", "")
        if self.expert is None:
            stacked = StoredSlice(all_layers, (self.layer,), (d.layers,))
            apart = [StoredSlice(one) for one in dict.fromkeys((in_layer.replace("*.", ""), in_layer))]
        else:
            at, stack = (self.layer, self.expert), (d.layers, d.experts)
            stacked = StoredSlice(all_layers, at, stack)
            apart = [
                StoredSlice(in_layer.replace("*.", ""), at[1:], stack[1:]),
                StoredSlice(in_layer.replace("*", str(self.expert))),
            ]
        return [stacked, *apart] if d.stacked and not key.startswith(MTP) else [*apart, stacked]


@dataclass(frozen=True)
class TensorRule:
    """One tensor of Megatron's and the Hugging Face tensors that it holds."""

    slot: Slot | None
    """None: Megatron has no such tensor; it is zeros of `shape` by the meaning of the arguments."""
    shape: tuple[int, ...]
    """Of Megatron's tensor, without layer and expert axes."""
    names: tuple[str, ...]
    """As in the hub's checkpoints of the architecture."""
    form: Form = SAME
    dtype: torch.dtype | None = None
    """Kept whatever the model's dtype; None is the model's."""
    pieces: tuple[tuple[str, int], ...] = ()
    """Where Megatron stores the tensor in pieces of its first axis: the end of each one's key, and its rows."""
    stored_dtype: torch.dtype | None = None
    """In which an import stores it; None is the Hugging Face tensors'."""
    again: bool = False
    """Whether Megatron's tensor is that of a rule before: a copy in Hugging Face's checkpoint."""

    @cached_property
    def hf_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the Hugging Face tensors, in the order of `names`."""
        return tuple(tuple(part.shape) for part in self.form.split(torch.empty(self.shape, device="meta")))
