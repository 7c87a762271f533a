"""Tensor rules of the pieces that decoders are made of; a family names its tensors and puts the pieces together.

Megatron's sources: `sharded_state_dict` of TransformerBlock, SelfAttention, MLP, SequentialMLP, SharedExpertMLP. RoPE
needs no permutation: without --rotary-interleaved Megatron rotates halves, as Hugging Face does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Slot, TensorRule
from megatron_compete.checkpoint.families.forms import SAME, Form, Halves, QueryKeyValue, Rows

Part = Callable[[Dimensions, int, str], Iterator[TensorRule]]
"""Rules of a part of one layer: sizes, layer, prefix of the layer's names."""

INPUT_NORM = ("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
MOE_NORM = ("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
DENSE_NORM = ("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")


def decoder(d: Dimensions, attention: Part, mlp: Part) -> Iterator[TensorRule]:
    """Embedding, layers of attention and MLP with a norm before each, last norm, head."""
    yield vocabulary(d, "embedding.word_embeddings.weight", "model.embed_tokens.weight")
    for layer in range(d.layers):
        prefix = f"model.layers.{layer}."
        yield from norm(d, layer, INPUT_NORM[1:] if d.latent else INPUT_NORM, prefix + "input_layernorm.")
        yield from attention(d, layer, prefix + "self_attn.")
        yield from norm(d, layer, MOE_NORM if d.moe_layers[layer] else DENSE_NORM, prefix + "post_attention_layernorm.")
        yield from mlp(d, layer, prefix)
    yield from norm(d, None, ("decoder.final_layernorm.",), "model.norm.")
    if not d.tied:
        yield vocabulary(d, "output_layer.weight", "lm_head.weight")


def vocabulary(d: Dimensions, key: str, name: str) -> TensorRule:
    """A table over the vocabulary, exported without padding."""
    return TensorRule(Slot((key,)), (d.padded_vocab, d.hidden), (name,), Rows(d.vocab, d.padded_vocab))


def norm(d: Dimensions, layer: int | None, stored: tuple[str, ...], name: str) -> Iterator[TensorRule]:
    """Weight of a norm over the hidden size, and bias where norms have one."""
    for kind in ("weight", "bias") if d.layer_norm else ("weight",):
        yield TensorRule(Slot(tuple(one + kind for one in stored), layer), (d.hidden,), (name + kind,))


def same(layer: int, stored: str | tuple[str, ...], name: str, *shape: int) -> TensorRule:
    """A tensor of a layer that is one tensor on both sides."""
    return TensorRule(Slot((stored,) if isinstance(stored, str) else stored, layer), shape, (name,))


def grouped_attention(d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
    """Grouped-query attention, with bias and with norms of queries and keys where the model has them."""
    rows = (d.heads + 2 * d.groups) * d.head
    form = QueryKeyValue(d.groups, d.head)
    for kind, shape in (("weight", (rows, d.hidden)), ("bias", (rows,))):
        if kind == "weight" or d.qkv_bias:
            names = tuple(f"{prefix}{part}_proj.{kind}" for part in "qkv")
            yield TensorRule(Slot((f"self_attention.linear_qkv.{kind}",), layer), shape, names, form)
    yield same(layer, "self_attention.linear_proj.weight", prefix + "o_proj.weight", d.hidden, d.heads * d.head)
    if not d.qk_norm:
        return
    for part in "qk":
        for kind in ("weight", "bias") if d.layer_norm else ("weight",):
            yield same(layer, f"self_attention.{part}_layernorm.{kind}", f"{prefix}{part}_norm.{kind}", d.head)


@dataclass(frozen=True)
class Mlp:
    """Names of an MLP's matrices; where MLPs are not gated, `gate` is not there."""

    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"

    def rules(self, d: Dimensions, slot: Callable[[str], Slot], prefix: str, width: int) -> Iterator[TensorRule]:
        """linear_fc1 [2F or F, H] and linear_fc2 [H, F] of one MLP of the width F."""
        into = (self.gate, self.up) if d.gated else (self.up,)
        names = tuple(f"{prefix}{name}.weight" for name in into)
        form: Form = Halves() if d.gated else SAME
        yield TensorRule(slot("linear_fc1.weight"), (len(into) * width, d.hidden), names, form)
        yield TensorRule(slot("linear_fc2.weight"), (d.hidden, width), (f"{prefix}{self.down}.weight",))

    def dense(self, d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
        """The MLP of a layer without experts."""
        yield from self.rules(d, lambda name: Slot((f"mlp.{name}",), layer), prefix, d.ffn)

    def experts(self, d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
        """Every expert; `prefix` ends in "experts."."""
        for expert in range(d.experts):
            yield from self.rules(d, _expert_slot(layer, expert), f"{prefix}{expert}.", d.expert_ffn)

    def shared(self, d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
        """The shared experts, one MLP as wide as all of them."""
        yield from self.rules(d, lambda name: Slot((f"mlp.shared_experts.{name}",), layer), prefix, d.shared_ffn)


MLP = Mlp()
"""As most architectures name it."""


def plain_mlp(d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
    """An MLP in every layer."""
    yield from MLP.dense(d, layer, prefix + "mlp.")


def _expert_slot(layer: int, expert: int) -> Callable[[str], Slot]:
    return lambda name: Slot((name,), layer, expert)


def router(d: Dimensions, layer: int, name: str) -> TensorRule:
    """The router's weight [E, H]."""
    return same(layer, "mlp.router.weight", name, d.experts, d.hidden)


def score_correction(d: Dimensions, layer: int, name: str) -> TensorRule:
    """The bias [E] by which experts are ranked; a router without one ranks as with zeros. Always fp32, as in Megatron."""
    slot = Slot(("mlp.router.expert_bias",), layer) if d.expert_bias else None
    return TensorRule(slot, (d.experts,), (name,), dtype=torch.float32)


def sigmoid_moe(d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
    """A dense layer, or experts behind sigmoid scores with shared ones beside, as DeepSeek-V3 names them."""
    moe = prefix + "mlp."
    if not d.moe_layers[layer]:
        yield from MLP.dense(d, layer, moe)
        return
    yield router(d, layer, moe + "gate.weight")
    yield score_correction(d, layer, moe + "gate.e_score_correction_bias")
    yield from MLP.experts(d, layer, moe + "experts.")
    yield from MLP.shared(d, layer, moe + "shared_experts.")
