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
  qg k v    queries with their gates, keys, values of linear_qkv (`forms.GatedQueryKeyValue`): three lines
  qkvz ba   queries, keys, values and gates, and betas and alphas, of a gated delta net's in_proj (`forms.GatedDelta`): two
            lines; Megatron stores each of the six apart
  qkv       all of its convolution; Megatron stores queries, keys and values apart
  zxbcdt    all of a Mamba layer's in_proj; Megatron stores gates, inputs, B, C and steps apart
  xbc       all of its convolution; Megatron stores those of inputs, B and C apart
  plus1     all of it, and 1 (`forms.PlusOne`)
  token     all of it, of which Megatron has one token a picture (`forms.Token`)
  interleaved   all experts at once, the columns of gate and up in turns, of their linear_fc1 (`forms.Interleaved`)
  transposed    all experts at once, their matrices transposed (`forms.Transposed`)
  experts       all experts at once
  again     all of it once more: Hugging Face has a copy in a layer for multi-token prediction
  zeros     Megatron has no such tensor (`-`): it means zeros
  also      another key of Megatron's for the tensor of the line above: Transformer Engine stores norms with the linear
            layer behind them, the local implementation apart (upstream: `sharded_state_dict_keys_map` in
            gpt_layer_specs.py). Import writes all, export reads the first that is there.

[shape]     of the Hugging Face tensor; `SIZES` has the letters

conditions  all must hold: `experts` or `dense`, what the layer's MLP is; `mamba`, `attention` or `mlp`, what a layer of a
            hybrid model is; `shared` for shared experts; or a switch of
            `Dimensions`; `!` is not

A layer for multi-token prediction is a decoder layer as the last one, behind it, with what the lines `mtp.layers.*` and
those of the part `again` add. Megatron counts these layers from 0 and has the decoder layer as `transformer_layer` (upstream:
`MultiTokenPredictionLayer.sharded_state_dict`), Hugging Face counts on.

RoPE needs no permutation: without --rotary-interleaved Megatron rotates halves, as Hugging Face does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.forms import (
    SAME,
    Form,
    GatedDelta,
    GatedQueryKeyValue,
    Halves,
    Interleaved,
    PlusOne,
    QueryKeyValue,
    Rows,
    Token,
    Transposed,
)
from megatron_compete.checkpoint.families.tensors import MTP, Slot, TensorRule

LAYER, MTP_LAYER = "decoder.layers.*.", "mtp.layers.*.transformer_layer."

SIZES: dict[str, Callable[[Dimensions], int]] = {
    "V": lambda d: d.vocab,
    "H": lambda d: d.hidden,
    "2H": lambda d: 2 * d.hidden,
    "Q": lambda d: d.heads * d.head,  # all query heads
    "K": lambda d: d.groups * d.head,  # all key heads, and all value heads
    "D": lambda d: d.head,
    "F": lambda d: d.ffn,
    "E": lambda d: d.experts,
    "M": lambda d: d.expert_ffn,
    "S": lambda d: d.shared_ffn,
    "L": lambda d: d.expert_latent,
    "I": lambda d: d.expert_latent or d.hidden,  # what an expert sees
    "2M": lambda d: 2 * d.expert_ffn,
    "N": lambda d: d.heads,
    "1": lambda d: 1,
    # Attention with gates, and gated delta nets.
    "2Q": lambda d: 2 * d.heads * d.head,
    "GP": lambda d: 2 * d.gdn.keys + 2 * d.gdn.values,
    "GG": lambda d: 2 * d.gdn.value_heads,
    "GC": lambda d: 2 * d.gdn.keys + d.gdn.values,
    "GW": lambda d: d.gdn.kernel,
    "GN": lambda d: d.gdn.value_heads,
    "GD": lambda d: d.gdn.value_head,
    "GV": lambda d: d.gdn.values,
    # Mamba layers.
    "SP": lambda d: d.ssm.inner + d.ssm.convolved + d.ssm.heads,
    "SI": lambda d: d.ssm.inner,
    "SC": lambda d: d.ssm.convolved,
    "SW": lambda d: d.ssm.kernel,
    "SN": lambda d: d.ssm.heads,
    # Multi-latent attention.
    "QL": lambda d: d.mla.query_rank,
    "QR": lambda d: d.heads * (d.mla.plain_head + d.mla.rotary_head),
    "KL": lambda d: d.mla.rank,
    "KP": lambda d: d.mla.rank + d.mla.rotary_head,
    "KV": lambda d: d.heads * (d.mla.plain_head + d.mla.value_head),
    "O": lambda d: d.heads * d.mla.value_head,
    # Vision towers and projectors.
    "3": lambda d: 3,  # colours
    "P": lambda d: d.patch,
    "T": lambda d: d.positions,
    "VH": lambda d: d.inputs,
}
"""Sizes by their letter in a shape."""

CONDITIONS: dict[str, Callable[[Dimensions, int | None], bool]] = {
    "experts": lambda d, layer: layer is not None and d.moe_layers[layer],
    "dense": lambda d, layer: layer is not None and not d.moe_layers[layer],
    "mamba": lambda d, layer: layer is not None and d.kinds[layer] == "M",
    "attention": lambda d, layer: layer is not None and d.kinds[layer] == "*",
    "mlp": lambda d, layer: layer is not None and d.kinds[layer] == "-",
    "linear": lambda d, layer: layer is not None and d.linear_layers[layer],
    "shared": lambda d, layer: d.shared_ffn > 0,
    "shared_gate": lambda d, layer: d.shared_gate,
    "latent": lambda d, layer: d.expert_latent > 0,
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
    ("again",): lambda d: Rows(d.vocab, d.padded_vocab),
    ("interleaved",): lambda d: Interleaved(),
    ("transposed",): lambda d: Transposed(),
    ("used",): lambda d: Rows(d.vocab, d.padded_vocab),
    ("gate", "up"): lambda d: Halves(),
    ("q", "k", "v"): lambda d: QueryKeyValue(d.groups, d.head),
    ("qg", "k", "v"): lambda d: GatedQueryKeyValue(d.groups, d.head),
    ("qkvz", "ba"): lambda d: GatedDelta(d.gdn.key_heads, d.gdn.key_head, d.gdn.value_heads, d.gdn.value_head),
    ("qkv",): lambda d: SAME,
    ("zxbcdt",): lambda d: SAME,
    ("xbc",): lambda d: SAME,
    ("plus1",): lambda d: PlusOne(),
    ("token",): lambda d: Token(),
}
"""By the parts of the lines that share Megatron's key."""

PIECES: dict[tuple[str, ...], Callable[[Dimensions], tuple[tuple[str, int], ...]]] = {
    ("qkvz", "ba"): lambda d: (
        *(("query", d.gdn.keys), ("key", d.gdn.keys), ("value", d.gdn.values), ("z", d.gdn.values)),
        *(("beta", d.gdn.value_heads), ("alpha", d.gdn.value_heads)),
    ),
    ("qkv",): lambda d: (("query", d.gdn.keys), ("key", d.gdn.keys), ("value", d.gdn.values)),
    ("zxbcdt",): lambda d: (
        *(("z", d.ssm.inner), ("x", d.ssm.inner), ("B", d.ssm.states), ("C", d.ssm.states), ("dt", d.ssm.heads)),
    ),
    ("xbc",): lambda d: (("x", d.ssm.inner), ("B", d.ssm.states), ("C", d.ssm.states)),
}
"""Of tensors that Megatron stores in pieces (upstream: `sharded_state_dict` of `GatedDeltaNet` and `MambaMixer`)."""

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

    @property
    def of_mtp(self) -> bool:
        """Whether only layers for multi-token prediction have it."""
        return self.parts == ("again",) or any(key.startswith(MTP) for key in self.megatron)

    def in_mtp(self) -> "Key":
        """It in a layer for multi-token prediction."""
        inner = tuple(key.replace(LAYER, MTP_LAYER, 1) for key in self.megatron)
        return replace(self, megatron=inner)

    def rule(self, d: Dimensions, layer: int | None, expert: int | None, depth: int | None = None) -> TensorRule:
        """The rule of this tensor of one layer and expert.

        Args:
            depth: which layer for multi-token prediction, from 0; `layer` counts on from the others.
        """
        shapes = [[SIZES[letter](d) for letter in shape] for shape in self.shapes]
        form = FORMS[self.parts](d)
        joined = form.join([torch.empty(shape, device="meta") for shape in shapes])
        numbers = [str(one) for one in (layer, expert) if one is not None]
        return TensorRule(
            slot=self._slot(layer if depth is None else depth, expert),
            shape=tuple(joined.shape),
            names=tuple(name.replace("*", "{}").format(*numbers) for name in self.names),
            form=form,
            dtype=torch.float32 if self.parts[0] in ("fp32", "zeros") else None,
            pieces=PIECES[self.parts](d) if self.parts in PIECES else (),
            stored_dtype=torch.float32 if self.parts == ("plus1",) else None,
            again=self.parts == ("again",),
        )

    def _slot(self, layer: int | None, expert: int | None) -> Slot | None:
        if not self.megatron:
            return None
        return Slot(self.megatron, layer, expert) if "*" in self.megatron[0] else Slot(self.megatron)


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
        numbers = name.count("*") + (part in ALL_EXPERTS) - (part == "again")
        if arrow != "->" or not known or (part != "zeros" and megatron.count("*") != numbers):
            raise ValueError(f"no line of a key table: {line}")
        keys = () if part == "zeros" else (megatron,)
        key = Key(keys, (name,), (part,), (letters,), tuple(conditions))
        before = table[-1] if table else None
        if part == "also" and before and (before.names, before.conditions) == (key.names, key.conditions):
            table[-1] = Key((*before.megatron, megatron), before.names, before.parts, before.shapes, before.conditions)
        elif (
            part in ("k", "v", "up", "ba") and before and (before.megatron, before.conditions) == (keys, key.conditions)
        ):
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
        keys, of_mtp = list(lines), []
        if in_layer:
            keys, of_mtp = ([key for key in keys if key.of_mtp is wanted] for wanted in (False, True))
        for layer in range(d.layers) if in_layer else (None,):
            yield from _layer_rules([key for key in keys if key.holds(d, layer)], d, layer)
        for depth in range(d.mtp_layers if in_layer else 0):
            last = [key.in_mtp() for key in (*keys, *of_mtp) if key.holds(d, d.layers - 1)]
            yield from _layer_rules(last, d, d.layers + depth, depth)


def _layer_rules(keys: list[Key], d: Dimensions, layer: int | None, depth: int | None = None) -> Iterator[TensorRule]:
    for per_expert, block in groupby(keys, key=lambda key: key.axes == 2):
        of_each = list(block)
        for expert in range(d.experts) if per_expert else (None,):
            yield from (key.rule(d, layer, expert, depth) for key in of_each)
