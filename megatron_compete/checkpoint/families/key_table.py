"""Key tables: Megatron's name of every tensor beside Hugging Face's, a line for each pair, and the rules they stand for.

A line of a family's table is

    MEGATRON -> HUGGING FACE  part  [shape]  conditions

with `*` for the number of a layer, and for that of an expert behind it. Keys are those of `sharded_state_dict`
(upstream: TransformerBlock, SelfAttention, MLP, SequentialMLP, SharedExpertMLP) and of the hub's checkpoints. Order
matters: it is that of the written tensors, layer by layer and in a layer expert by expert.

part        what the Hugging Face tensor is of Megatron's
  whole     all of it
  q k v     queries, keys, values of linear_qkv (`forms.QueryKeyValue`): three lines
  gate up   halves of a gated MLP's linear_fc1 (`forms.Halves`): two lines
  used      the rows of ids in use; Megatron's tables are padded (`forms.Rows`)
  fp32      all of it, in fp32 whatever the model's dtype, as in Megatron
  interleaved   all experts at once, the columns of gate and up in turns, of their linear_fc1 (`forms.Interleaved`)
  transposed    all experts at once, their matrices transposed (`forms.Transposed`)
  experts       all experts at once
  zeros     Megatron has no such tensor (`-`): it means zeros
  also      another key of Megatron's for the tensor of the line above: Transformer Engine stores norms with the linear
            layer behind them, the local implementation apart (upstream: `sharded_state_dict_keys_map` in
            gpt_layer_specs.py). Import writes all, export reads the first that is there.

[shape]     of the Hugging Face tensor; `SIZES` has the letters

conditions  all must hold: `experts` or `dense`, what the layer's MLP is; `shared` for shared experts; or a switch of
            `Dimensions`; `!` is not

RoPE needs no permutation: without --rotary-interleaved Megatron rotates halves, as Hugging Face does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.forms import (
    SAME,
    Form,
    Halves,
    Interleaved,
    QueryKeyValue,
    Rows,
    Transposed,
)
from megatron_compete.checkpoint.families.tensors import Slot, TensorRule

SIZES: dict[str, Callable[[Dimensions], int]] = {
    "V": lambda d: d.vocab,
    "H": lambda d: d.hidden,
    "Q": lambda d: d.heads * d.head,  # all query heads
    "K": lambda d: d.groups * d.head,  # all key heads, and all value heads
    "D": lambda d: d.head,
    "F": lambda d: d.ffn,
    "E": lambda d: d.experts,
    "M": lambda d: d.expert_ffn,
    "S": lambda d: d.shared_ffn,
    "2M": lambda d: 2 * d.expert_ffn,
    "N": lambda d: d.heads,
    "1": lambda d: 1,
    # Multi-latent attention.
    "QL": lambda d: d.mla.query_rank,
    "QR": lambda d: d.heads * (d.mla.plain_head + d.mla.rotary_head),
    "KL": lambda d: d.mla.rank,
    "KP": lambda d: d.mla.rank + d.mla.rotary_head,
    "KV": lambda d: d.heads * (d.mla.plain_head + d.mla.value_head),
    "O": lambda d: d.heads * d.mla.value_head,
}
"""Sizes by their letter in a shape."""

CONDITIONS: dict[str, Callable[[Dimensions, int | None], bool]] = {
    "experts": lambda d, layer: layer is not None and d.moe_layers[layer],
    "dense": lambda d, layer: layer is not None and not d.moe_layers[layer],
    "shared": lambda d, layer: d.shared_ffn > 0,
    "shared_gate": lambda d, layer: d.shared_gate,
    "expert_bias": lambda d, layer: d.expert_bias,
    "gated": lambda d, layer: d.gated,
    "layer_norm": lambda d, layer: d.layer_norm,
    "qkv_bias": lambda d, layer: d.qkv_bias,
    "qk_norm": lambda d, layer: d.qk_norm,
    "tied": lambda d, layer: d.tied,
}

FORMS: dict[tuple[str, ...], Callable[[Dimensions], Form]] = {
    ("whole",): lambda d: SAME,
    ("fp32",): lambda d: SAME,
    ("zeros",): lambda d: SAME,
    ("experts",): lambda d: SAME,
    ("interleaved",): lambda d: Interleaved(),
    ("transposed",): lambda d: Transposed(),
    ("used",): lambda d: Rows(d.vocab, d.padded_vocab),
    ("gate", "up"): lambda d: Halves(),
    ("q", "k", "v"): lambda d: QueryKeyValue(d.groups, d.head),
}
"""By the parts of the lines that share Megatron's key."""

ALL_EXPERTS = ("experts", "interleaved", "transposed")
"""Parts whose Hugging Face tensor has no number of an expert."""


@dataclass(frozen=True)
class Key:
    """One tensor of Megatron's: the lines of a table that name it."""

    megatron: tuple[str, ...]
    """Its keys; none where it means zeros."""
    names: tuple[str, ...]
    """Hugging Face's, in the order of `parts`."""
    parts: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]
    """Of the Hugging Face tensors, as letters."""
    conditions: tuple[str, ...]

    @property
    def axes(self) -> int:
        """Numbers in its names: 0 of the model, 1 of a layer, 2 of an expert."""
        return self.names[0].count("*")

    def holds(self, d: Dimensions, layer: int | None) -> bool:
        """Whether the model has it, in this layer."""
        return all(CONDITIONS[one.lstrip("!")](d, layer) is not one.startswith("!") for one in self.conditions)

    def rule(self, d: Dimensions, layer: int | None, expert: int | None) -> TensorRule:
        """The rule of this tensor of one layer and expert."""
        shapes = [[SIZES[letter](d) for letter in shape] for shape in self.shapes]
        form = FORMS[self.parts](d)
        joined = form.join([torch.empty(shape, device="meta") for shape in shapes])
        numbers = [str(one) for one in (layer, expert) if one is not None]
        return TensorRule(
            slot=Slot(self.megatron, layer, expert) if self.megatron else None,
            shape=tuple(joined.shape),
            names=tuple(name.replace("*", "{}").format(*numbers) for name in self.names),
            form=form,
            dtype=torch.float32 if self.parts[0] in ("fp32", "zeros") else None,
        )


KeyTable = tuple[Key, ...]


def read_keys(text: str) -> KeyTable:
    """The table that the lines of `text` are.

    Raises:
        ValueError: a line that is not as above; names it.
    """
    table: list[Key] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        megatron, arrow, name, part, shape, *conditions = line.split()
        letters = tuple(shape.strip("[]").split(","))
        known = {*SIZES, *CONDITIONS} >= {*letters, *(one.lstrip("!") for one in conditions)}
        numbers = name.count("*") + (part in ALL_EXPERTS)
        if arrow != "->" or not known or (part != "zeros" and megatron.count("*") != numbers):
            raise ValueError(f"no line of a key table: {line}")
        keys = () if part == "zeros" else (megatron,)
        key = Key(keys, (name,), (part,), (letters,), tuple(conditions))
        before = table[-1] if table else None
        if part == "also" and before and (before.names, before.conditions) == (key.names, key.conditions):
            table[-1] = Key((*before.megatron, megatron), before.names, before.parts, before.shapes, before.conditions)
        elif part in ("k", "v", "up") and before and (before.megatron, before.conditions) == (keys, key.conditions):
            parts = (*before.parts, part)
            table[-1] = Key(keys, (*before.names, name), parts, (*before.shapes, letters), before.conditions)
        else:
            table.append(key)
    if wrong := next((key for key in table if key.parts not in FORMS), None):
        raise ValueError(f"no whole tensor in a key table: {wrong.megatron} has the parts {', '.join(wrong.parts)}")
    return tuple(table)


def tensor_rules(table: KeyTable, d: Dimensions) -> Iterator[TensorRule]:
    """Every tensor of a model of these sizes, in the order in which they are written."""
    for in_layer, lines in groupby(table, key=lambda key: key.axes > 0):
        keys = list(lines)
        for layer in range(d.layers) if in_layer else (None,):
            present = [key for key in keys if key.holds(d, layer)]
            for per_expert, block in groupby(present, key=lambda key: key.axes == 2):
                of_each = list(block)
                for expert in range(d.experts) if per_expert else (None,):
                    yield from (key.rule(d, layer, expert) for key in of_each)
