"""Megatron's GPT model with experts as Hugging Face's Mixtral: configuration and tensors.

Names and shapes are those of the published Mixtral checkpoints, which transformers 4 and 5 and vLLM read
(`block_sparse_moe.experts.E.w1` gate, `w3` up, `w2` down). Legend: H hidden, D head size, G query groups, N query
heads a group, F expert width, E experts, V vocabulary.

Megatron's sources: `SelfAttention.get_query_key_value_tensors` for the order inside linear_qkv, `MLP` for [gate; up],
`sharded_state_dict` of TransformerBlock, MLP and SequentialMLP for names and leading axes. RoPE needs no permutation:
without --rotary-interleaved Megatron rotates halves, as Hugging Face does.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_compete.checkpoint.reader import TensorSource
from megatron_compete.errors import CompeteError

MODEL_PREFIXES = ("embedding.", "decoder.", "output_layer.", "encoder.", "mtp.")
"""Keys of the model's own tensors; the rest is optimizer and trainer state."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INITIALIZER_RANGE = 0.02
ROTARY_BASE = 10000
NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the model, from Megatron's arguments."""

    layers: int
    hidden: int
    groups: int
    heads_per_group: int
    head: int
    ffn: int
    experts: int
    topk: int
    tied: bool

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any]) -> "Dimensions":
        """Sizes as Megatron derives them: without --group-query-attention, --num-query-groups means nothing."""
        for name in ("num_layers", "hidden_size", "num_attention_heads", "num_experts"):
            if not arguments.get(name):
                raise CompeteError(f"the checkpoint's arguments do not say --{name.replace('_', '-')}")
        heads, hidden = int(arguments["num_attention_heads"]), int(arguments["hidden_size"])
        groups = int(arguments["num_query_groups"]) if arguments.get("group_query_attention") else heads
        return cls(
            layers=int(arguments["num_layers"]),
            hidden=hidden,
            groups=groups,
            heads_per_group=heads // groups,
            head=int(arguments.get("kv_channels") or hidden // heads),
            ffn=int(arguments.get("moe_ffn_hidden_size") or arguments.get("ffn_hidden_size") or 4 * hidden),
            experts=int(arguments["num_experts"]),
            topk=int(arguments.get("moe_router_topk", 2)),
            tied=not arguments.get("untie_embeddings_and_output_weights", False),
        )


class Place(NamedTuple):
    """Where a tensor is stored: the slice of `key` that `at` indexes, whose leading axes have the sizes `stack`."""

    key: str
    at: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """One stored tensor, or one slice of it, and the Mixtral tensors it holds."""

    place: Place
    shape: tuple[int, ...]
    """Shape that the slice must have."""
    names: tuple[str, ...]
    split: Callable[[Tensor], tuple[Tensor, ...]]


def split_qkv(fused: Tensor, groups: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of Megatron's linear_qkv.

    Args:
        fused: [G * (N + 2) * D, H]: for each group its N query heads, its key head, its value head.
    Returns:
        [G * N * D, H], [G * D, H], [G * D, H].
    """
    hidden = fused.shape[-1]
    by_group = fused.view(groups, -1, head, hidden)  # [G, N + 2, D, H]
    queries, keys, values = by_group[:, :-2], by_group[:, -2], by_group[:, -1]
    return queries.reshape(-1, hidden), keys.reshape(-1, hidden), values.reshape(-1, hidden)


def split_gate_up(fused: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and up [F, H] of a SwiGLU linear_fc1 [2F, H]."""
    gate, up = fused.chunk(2)
    return gate, up


def _same(tensor: Tensor) -> tuple[Tensor]:
    return (tensor,)


class MixtralTensors:
    """Every tensor of the Mixtral model, read from a Megatron checkpoint one at a time.

    Raises:
        CompeteError: a tensor is missing, has another shape than the arguments say, or has no place in a Mixtral.
    """

    def __init__(self, source: TensorSource, dimensions: Dimensions, vocab_size: int | None = None) -> None:
        self.source = source
        self.dimensions = dimensions
        self.padded_vocab = self._require("embedding.word_embeddings.weight")[0]
        self.vocab_size = self.padded_vocab if vocab_size is None else vocab_size
        if self.vocab_size > self.padded_vocab:
            raise CompeteError(
                f"the tokenizer has {self.vocab_size} ids and the model embeds {self.padded_vocab}: "
                "it was trained with another one, name that with --tokenizer-model"
            )
        self.conversions = tuple(self._conversions())
        self._check()

    @property
    def dtype(self) -> torch.dtype:
        """Of the embeddings, and with them of the model."""
        return self.source.tensors["embedding.word_embeddings.weight"].dtype

    def sizes(self) -> dict[str, int]:
        """Bytes of every tensor, in the order in which `__iter__` gives them; nothing is read."""
        sizes: dict[str, int] = {}
        for one in self.conversions:
            stored = torch.empty(one.shape, dtype=self.source.tensors[one.place.key].dtype, device="meta")
            sizes |= {name: part.nbytes for name, part in zip(one.names, one.split(stored))}
        return sizes

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for one in self.conversions:
            parts = one.split(self.source.read(one.place.key, one.place.at))
            for name, part in zip(one.names, parts):
                yield name, part.contiguous()

    def _conversions(self) -> Iterator[Conversion]:
        d, cut = self.dimensions, self._without_padding
        table = (self.padded_vocab, d.hidden)
        yield Conversion(Place("embedding.word_embeddings.weight"), table, ("model.embed_tokens.weight",), cut)
        for layer in range(d.layers):
            yield from self._layer(layer)
        yield Conversion(Place("decoder.final_layernorm.weight"), (d.hidden,), ("model.norm.weight",), _same)
        if not d.tied:
            yield Conversion(Place("output_layer.weight"), table, ("lm_head.weight",), cut)

    def _without_padding(self, table: Tensor) -> tuple[Tensor]:
        return (table[: self.vocab_size],)

    def _layer(self, layer: int) -> Iterator[Conversion]:
        d, prefix = self.dimensions, f"model.layers.{layer}."
        attention, moe = prefix + "self_attn.", prefix + "block_sparse_moe."
        heads = d.groups * d.heads_per_group

        def one(stored: tuple[str, ...], name: str, *shape: int) -> Conversion:
            return Conversion(self._in_layer(layer, *stored), shape, (name,), _same)

        # The norms' names depend on whether Transformer Engine fuses them into the next linear layer.
        norm = ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
        yield one(norm, prefix + "input_layernorm.weight", d.hidden)
        yield Conversion(
            self._in_layer(layer, "self_attention.linear_qkv.weight"),
            ((heads + 2 * d.groups) * d.head, d.hidden),
            (attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight"),
            lambda fused: split_qkv(fused, d.groups, d.head),
        )
        yield one(("self_attention.linear_proj.weight",), attention + "o_proj.weight", d.hidden, heads * d.head)
        norm = ("pre_mlp_layernorm.weight", "mlp.linear_fc1.layer_norm_weight")
        yield one(norm, prefix + "post_attention_layernorm.weight", d.hidden)
        yield one(("mlp.router.weight",), moe + "gate.weight", d.experts, d.hidden)
        for expert in range(d.experts):
            yield from self._expert(layer, expert, f"{moe}experts.{expert}.")

    def _expert(self, layer: int, expert: int, prefix: str) -> Iterator[Conversion]:
        d = self.dimensions
        fc1, fc2 = (self._in_expert(layer, expert, f"linear_fc{i}.weight") for i in (1, 2))
        gate, up, down = prefix + "w1.weight", prefix + "w3.weight", prefix + "w2.weight"
        if fc1.key in self.source.tensors:
            yield Conversion(fc1, (2 * d.ffn, d.hidden), (gate, up), split_gate_up)
        else:  # halves stored apart: `singleton_local_shards`
            yield Conversion(fc1._replace(key=fc1.key + "_w"), (d.ffn, d.hidden), (gate,), _same)
            yield Conversion(fc1._replace(key=fc1.key + "_v"), (d.ffn, d.hidden), (up,), _same)
        yield Conversion(fc2, (d.hidden, d.ffn), (down,), _same)

    def _in_layer(self, layer: int, *names: str) -> Place:
        """Layers are stacked, or have keys of their own."""
        for name in names:
            if (key := f"decoder.layers.{name}") in self.source.tensors:
                return Place(key, (layer,), (self.dimensions.layers,))
            if (key := f"decoder.layers.{layer}.{name}") in self.source.tensors:
                return Place(key)
        raise CompeteError(f"the checkpoint has no decoder.layers.{layer}.{' or '.join(names)}: another kind of model")

    def _in_expert(self, layer: int, expert: int, name: str) -> Place:
        """Experts are stacked behind the layers, or have keys of their own."""
        d, inside = self.dimensions, "mlp.experts.experts."
        places = (
            Place(f"decoder.layers.{inside}{name}", (layer, expert), (d.layers, d.experts)),
            Place(f"decoder.layers.{layer}.{inside}{name}", (expert,), (d.experts,)),
            Place(f"decoder.layers.{layer}.{inside}{expert}.{name}"),
        )
        for place in places:
            if place.key in self.source.tensors or place.key + "_w" in self.source.tensors:
                return place
        raise CompeteError(f"the checkpoint has no {places[0].key}: another kind of experts")

    def _require(self, key: str) -> tuple[int, ...]:
        if key not in self.source.tensors:
            raise CompeteError(f"the checkpoint has no {key}: not a language model of megatron.training")
        return self.source.tensors[key].shape

    def _check(self) -> None:
        for one in self.conversions:
            shape, expected = self._require(one.place.key), (*one.place.stack, *one.shape)
            if shape != expected:
                raise CompeteError(f"{one.place.key} has shape {shape}, its training arguments make it {expected}")
            if (dtype := self.source.tensors[one.place.key].dtype) not in DTYPES:
                raise CompeteError(
                    f"{one.place.key} is stored as {dtype}: only bf16, fp16 and fp32 weights are exported"
                )
        used = {one.place.key for one in self.conversions}
        strangers = [key for key in self.source.tensors if key.startswith(MODEL_PREFIXES) and key not in used]
        if strangers:
            raise CompeteError(
                f"the checkpoint holds {len(strangers)} tensors that a Mixtral model has no place for: "
                f"{', '.join(sorted(strangers)[:4])}"
            )


def mixtral_config(
    arguments: Mapping[str, Any], tensors: MixtralTensors, bos: int | None, eos: int | None, pad: int | None = None
) -> dict[str, Any]:
    """`config.json`, in the form that transformers 4 wrote and both 4 and 5 read (rope_theta, torch_dtype)."""
    d = tensors.dimensions
    dtype = str(tensors.dtype).removeprefix("torch.")
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": tensors.vocab_size,
        "hidden_size": d.hidden,
        "intermediate_size": d.ffn,
        "num_hidden_layers": d.layers,
        "num_attention_heads": d.groups * d.heads_per_group,
        "num_key_value_heads": d.groups,
        "head_dim": d.head,
        "num_local_experts": d.experts,
        "num_experts_per_tok": d.topk,
        "hidden_act": "silu",
        "max_position_embeddings": int(arguments.get("max_position_embeddings") or arguments["seq_length"]),
        "rope_theta": float(arguments.get("rotary_base", ROTARY_BASE)),
        "rms_norm_eps": float(arguments.get("layernorm_epsilon", arguments.get("norm_epsilon", NORM_EPSILON))),
        "sliding_window": None,
        "attention_dropout": float(arguments.get("attention_dropout", 0.0)),
        "initializer_range": float(arguments.get("init_method_std", INITIALIZER_RANGE)),
        "output_router_logits": False,
        "tie_word_embeddings": d.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`generation_config.json`: where a generation starts and ends."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config[name] is not None}
