"""A family's tensor rules bound to one checkpoint: what each Hugging Face tensor is read from, and what is left over."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_compete.checkpoint.families import Dimensions, Family, StoredSlice, TensorRule
from megatron_compete.checkpoint.reader import TensorInfo, TensorSource
from megatron_compete.common.errors import CompeteError

MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.", "encoder.", "mtp.")
"""Keys of the model's own tensors; the rest is optimizer and trainer state."""

TRAINING_ONLY = re.compile(r"(?:\.mlp\.|^)centering\.")
"""The model's own tensors that only training uses: statistics of competition's responses (`moe/centering.py`)."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EMBEDDING = "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class Reading:
    """One rule and where this checkpoint has its tensor; several keys are parts of its first axis, none is zeros."""

    rule: TensorRule
    keys: tuple[str, ...]
    at: tuple[int, ...]
    dtype: torch.dtype
    """Of the exported tensors."""

    def read(self, source: TensorSource) -> tuple[Tensor, ...]:
        """Hugging Face's tensors, in the dtype of the export."""
        parts = [source.read(key, self.at) for key in self.keys]
        if not parts:
            return (torch.zeros(self.rule.shape, dtype=self.dtype),)
        whole = parts[0] if len(parts) == 1 else torch.cat(parts).view(self.rule.shape)
        return tuple(part.to(self.dtype) for part in self.rule.form.split(whole))


class ExportPlan:
    """Every tensor of the exported model, read from a Megatron checkpoint one at a time.

    Without a dtype each tensor keeps its own: an import of a bf16 model may have norms or a router in fp32.

    Args:
        prefixes: of the model's own keys.
        own_dtype: of tensors that the checkpoint does not have (default: the embedding's).
    Raises:
        CompeteError: a tensor is missing, has another shape than the arguments say, or has no place in the family.
    """

    def __init__(
        self,
        source: TensorSource,
        family: Family,
        dimensions: Dimensions,
        dtype: torch.dtype | None = None,
        prefixes: tuple[str, ...] = MODEL_PREFIXES,
        own_dtype: torch.dtype | None = None,
    ) -> None:
        self.source = source
        self.family = family
        self.dimensions = dimensions
        self.prefixes = prefixes
        self.dtype = dtype or own_dtype or embedding(source).dtype
        self._keeps_dtypes = dtype is None
        self.readings = tuple(self._bind(rule) for rule in family.tensors(dimensions))
        self._check_all_used()

    def sizes(self) -> dict[str, TensorInfo]:
        """Shape and dtype of every tensor, in the order in which `__iter__` gives them; nothing is read."""
        return {
            name: TensorInfo(shape, one.dtype)
            for one in self.readings
            for name, shape in zip(one.rule.names, one.rule.hf_shapes)
        }

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for one in self.readings:
            yield from zip(one.rule.names, one.read(self.source))

    def _bind(self, rule: TensorRule) -> Reading:
        if rule.slot is None:
            return Reading(rule, (), (), rule.dtype or self.dtype)
        places = rule.slot.stored(self.dimensions)
        for place in places:
            keys = self._keys(place, rule)
            if keys:
                self._check(keys, place, rule)
                stored = self.source.tensors[keys[0]].dtype
                keeps = self._keeps_dtypes and rule.stored_dtype is None
                dtype = rule.dtype or (stored if keeps else self.dtype)
                return Reading(rule, keys, place.at, dtype)
        raise CompeteError(
            f"the checkpoint has no {' or '.join(dict.fromkeys(place.key for place in places))}: "
            f"not a {self.family.title} of megatron.training"
        )

    def _keys(self, place: StoredSlice, rule: TensorRule) -> tuple[str, ...]:
        """The key; those of its pieces; or those of experts, and of gate and up, where they are stored apart
        (`singleton_local_shards`)."""
        if rule.pieces:
            pieces = tuple(f"{place.key}.{name}" for name, _ in rule.pieces)
            return pieces if all(piece in self.source.tensors for piece in pieces) else ()
        if "*" in place.key:
            each = [place._replace(key=place.key.replace("*", str(one))) for one in range(self.dimensions.experts)]
            found = [self._keys(one, rule) for one in each]
            return tuple(key for keys in found for key in keys) if all(found) else ()
        if place.key in self.source.tensors:
            return (place.key,)
        halves = (place.key + "_w", place.key + "_v")
        return halves if all(half in self.source.tensors for half in halves) else ()

    def _check(self, keys: tuple[str, ...], place: StoredSlice, rule: TensorRule) -> None:
        shape = rule.shape
        if "*" in place.key:  # the first axis is that of the experts, each of which has as many keys
            shape = (shape[1] * shape[0], *shape[2:])
        rows = [rows for _, rows in rule.pieces] or [shape[0] // len(keys)] * len(keys)
        for key, height in zip(keys, rows, strict=True):
            expected = (*place.stack, height, *shape[1:])
            info = self.source.tensors[key]
            if info.shape != expected:
                raise CompeteError(f"{key} has shape {info.shape}, its training arguments make it {expected}")
            if info.dtype not in DTYPES:
                raise CompeteError(f"{key} is stored as {info.dtype}: only bf16, fp16 and fp32 weights are exported")

    def _check_all_used(self) -> None:
        used = {key for one in self.readings for key in one.keys}
        for one in self.readings:
            # A checkpoint may have a tensor under the names of several implementations.
            used |= {key for place in (one.rule.slot.stored(self.dimensions) if one.rule.slot else ())
                     for key in self._keys(place, one.rule)}  # fmt: skip
        strangers = [key for key in self.source.tensors if key.startswith(self.prefixes) and key not in used]
        strangers = sorted(key for key in strangers if not TRAINING_ONLY.search(key))
        if strangers:
            raise CompeteError(
                f"the checkpoint holds {len(strangers)} tensors that a {self.family.title} model has no place for: "
                f"{', '.join(strangers[:4])}"
            )


def embedding(source: TensorSource) -> TensorInfo:
    """The embedding, which every language model has.

    Raises:
        CompeteError: there is none.
    """
    if EMBEDDING not in source.tensors:
        raise CompeteError(f"the checkpoint has no {EMBEDDING}: not a language model of megatron.training")
    return source.tensors[EMBEDDING]
