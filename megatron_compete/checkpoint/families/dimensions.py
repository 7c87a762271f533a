"""Sizes and parts of a model, from Megatron's arguments: all that the tensor rules of a family need to know."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class Latent:
    """Sizes of multi-latent attention (upstream: `MLATransformerConfig`)."""

    query_rank: int
    """0: queries come straight from the hidden states."""
    rank: int
    """Of keys and values."""
    plain_head: int
    """Part of a query's and key's head without positions."""
    rotary_head: int
    """Part with positions; one key for all heads."""
    value_head: int


@dataclass(frozen=True)
class Delta:
    """Sizes of a gated delta net (upstream: `GatedDeltaNet`)."""

    key_heads: int
    key_head: int
    value_heads: int
    value_head: int
    kernel: int
    """Of the convolution."""

    @property
    def keys(self) -> int:
        """Numbers of all key heads; queries have as many."""
        return self.key_heads * self.key_head

    @property
    def values(self) -> int:
        """Numbers of all value heads."""
        return self.value_heads * self.value_head


@dataclass(frozen=True)
class Mamba:
    """Sizes of a Mamba-2 layer (upstream: `MambaMixer`)."""

    heads: int
    head: int
    groups: int
    state: int
    kernel: int = 4
    """Of the convolution; fixed in Megatron."""

    @property
    def inner(self) -> int:
        """Numbers of all heads."""
        return self.heads * self.head

    @property
    def states(self) -> int:
        """Numbers of B, and of C."""
        return self.groups * self.state

    @property
    def convolved(self) -> int:
        """Channels of the convolution: inputs, B and C."""
        return self.inner + 2 * self.states


@dataclass(frozen=True)
class Dimensions:
    """Sizes as Megatron derives them from its arguments."""

    layers: int
    hidden: int
    groups: int
    """Key and value heads."""
    heads_per_group: int
    head: int
    ffn: int
    """Width of a dense layer's MLP."""
    expert_ffn: int
    shared_ffn: int
    """Width of the shared experts together; 0 without."""
    experts: int
    """0: a dense model."""
    topk: int
    moe_layers: tuple[bool, ...]
    """Whether a layer has experts."""
    tied: bool
    """Whether the output layer is the embedding."""
    stacked: bool
    """Whether Megatron stores all layers in one tensor with a layer axis, which it does where they are all alike."""
    padded_vocab: int
    """Rows of the embedding."""
    vocab: int
    """Ids in use."""
    latent: Latent | None = None
    qkv_bias: bool = False
    """Whether queries, keys and values have a bias."""
    qk_norm: bool = False
    """Whether queries and keys are normalised, head by head."""
    layer_norm: bool = False
    """Whether norms are LayerNorms, with a bias beside the weight."""
    gated: bool = True
    """Whether MLPs have three matrices (SwiGLU) and not two."""
    shared_gate: bool = False
    """Whether a sigmoid gate weights the shared experts."""
    expert_bias: bool = False
    """Whether the router has a score-correction bias."""
    expert_latent: int = 0
    """Width of what experts see, where that is not the hidden states."""
    delta: Delta | None = None
    linear_layers: tuple[bool, ...] = ()
    """Whether a layer has a gated delta net in attention's place; empty: none."""
    mamba: Mamba | None = None
    kinds: str = ""
    """A symbol for every layer of a hybrid model (upstream: `hybrid_layer_allocation.Symbols`)."""
    mtp_layers: int = 0
    """Layers for multi-token prediction, behind the others."""
    patch: int = 0
    """Side of a vision tower's patches, in pixels."""
    positions: int = 0
    """Of a vision tower: its patches, and the class token where it has one."""
    inputs: int = 0
    """Of a projector: hidden size of the vision tower."""

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.groups * self.heads_per_group

    @property
    def mla(self) -> Latent:
        """Sizes of multi-latent attention, of a model that has it."""
        assert self.latent is not None
        return self.latent

    @property
    def ssm(self) -> Mamba:
        """Sizes of the Mamba layers, of a model that has them."""
        assert self.mamba is not None
        return self.mamba

    @property
    def gdn(self) -> Delta:
        """Sizes of the gated delta nets, of a model that has them."""
        assert self.delta is not None
        return self.delta

    @property
    def dense_layers(self) -> list[int]:
        """Layers of a model with experts that have none."""
        return [layer for layer, has_experts in enumerate(self.moe_layers) if self.experts and not has_experts]

    @classmethod
    def from_arguments(
        cls, arguments: Mapping[str, Any], padded_vocab: int | None = None, vocab: int | None = None
    ) -> "Dimensions":
        """Sizes of the model that Megatron builds from `arguments` (`vars(args)`, with defaults where one is missing).

        Args:
            padded_vocab: rows of the embedding; None takes --padded-vocab-size.
            vocab: ids in use; None keeps the padding.
        Raises:
            CompeteError: an argument without which there is no model is missing.
        """
        for name in ("num_layers", "hidden_size", "num_attention_heads"):
            if not arguments.get(name):
                raise CompeteError(f"the checkpoint's arguments do not say --{name.replace('_', '-')}")
        heads, hidden, layers = (int(arguments[name]) for name in ("num_attention_heads", "hidden_size", "num_layers"))
        groups = int(arguments["num_query_groups"]) if arguments.get("group_query_attention") else heads
        ffn = int(arguments.get("ffn_hidden_size") or 4 * hidden)
        experts = int(arguments.get("num_experts") or 0)
        rows = int(padded_vocab or arguments.get("padded_vocab_size") or 0)
        frequency = arguments.get("moe_layer_freq", 1)
        has_delta = arguments.get("experimental_attention_variant") == "gated_delta_net"
        linear = layer_pattern(arguments.get("linear_attention_freq"), layers) if has_delta else ()
        kinds = str(arguments.get("hybrid_layer_pattern") or "").replace("|", "")  # which only says the stages
        return cls(
            layers=layers,
            hidden=hidden,
            groups=groups,
            heads_per_group=heads // groups,
            head=int(arguments.get("kv_channels") or hidden // heads),
            ffn=ffn,
            expert_ffn=int(arguments.get("moe_ffn_hidden_size") or ffn),
            shared_ffn=int(arguments.get("moe_shared_expert_intermediate_size") or 0) if experts else 0,
            experts=experts,
            topk=int(arguments.get("moe_router_topk", 2)),
            moe_layers=_moe_layers(kinds, frequency, layers) if experts else (False,) * layers,
            tied=not arguments.get("untie_embeddings_and_output_weights", False),
            stacked=not isinstance(frequency, list) and int(frequency) == 1 and not any(linear) and not kinds,
            padded_vocab=rows,
            vocab=rows if vocab is None else vocab,
            latent=_latent(arguments) if arguments.get("multi_latent_attention") else None,
            qkv_bias=bool(arguments.get("add_qkv_bias")),
            qk_norm=bool(arguments.get("qk_layernorm")),
            layer_norm=arguments.get("normalization", "LayerNorm") == "LayerNorm",
            gated=bool(arguments.get("swiglu")),
            shared_gate=bool(arguments.get("moe_shared_expert_gate")),
            expert_bias=bool(arguments.get("moe_router_enable_expert_bias")),
            expert_latent=int(arguments.get("moe_latent_size") or 0),
            delta=_delta(arguments) if has_delta else None,
            linear_layers=linear,
            mamba=_mamba(arguments) if kinds else None,
            kinds=kinds,
            mtp_layers=int(arguments.get("mtp_num_layers") or 0),
        )


def moe_pattern(frequency: int | list[int], layers: int) -> tuple[bool, ...]:
    """Which layers have experts under --moe-layer-freq (upstream: `get_gpt_decoder_layer_specs`).

    Raises:
        CompeteError: a pattern of another length than the model.
    """
    if not isinstance(frequency, list):
        return tuple(layer % int(frequency) == 0 for layer in range(layers))
    if len(frequency) != layers:
        raise CompeteError(f"--moe-layer-freq has {len(frequency)} entries for {layers} layers")
    return tuple(bool(one) for one in frequency)


def _moe_layers(kinds: str, frequency: int | list[int], layers: int) -> tuple[bool, ...]:
    return tuple(kind == "E" for kind in kinds) if kinds else moe_pattern(frequency, layers)


def _mamba(arguments: Mapping[str, Any]) -> Mamba:
    """Upstream: defaults of `TransformerConfig`, and the number of heads that `MambaMixer` derives."""
    head = int(arguments.get("mamba_head_dim") or 64)
    return Mamba(
        heads=int(arguments.get("mamba_num_heads") or 2 * int(arguments["hidden_size"]) // head),
        head=head,
        groups=int(arguments.get("mamba_num_groups") or 8),
        state=int(arguments.get("mamba_state_dim") or 128),
    )


def _delta(arguments: Mapping[str, Any]) -> Delta:
    return Delta(
        key_heads=int(arguments.get("linear_num_key_heads") or 16),
        key_head=int(arguments.get("linear_key_head_dim") or 128),
        value_heads=int(arguments.get("linear_num_value_heads") or 32),
        value_head=int(arguments.get("linear_value_head_dim") or 128),
        kernel=int(arguments.get("linear_conv_kernel_dim") or 4),
    )


def layer_pattern(frequency: int | list[int] | None, layers: int) -> tuple[bool, ...]:
    """Layers that are not every `frequency`th, from 1: all of them under None.

    Of --window-attn-skip-freq and --linear-attention-freq (upstream: `is_layer_window_attention`,
    `get_linear_attention_pattern`).
    """
    if isinstance(frequency, list):
        return tuple(map(bool, frequency))
    return tuple(frequency is None or (layer + 1) % int(frequency) != 0 for layer in range(layers))


def _latent(arguments: Mapping[str, Any]) -> Latent:
    return Latent(
        query_rank=int(arguments.get("q_lora_rank") or 0),
        rank=int(arguments.get("kv_lora_rank", 32)),
        plain_head=int(arguments.get("qk_head_dim", 128)),
        rotary_head=int(arguments.get("qk_pos_emb_head_dim", 64)),
        value_head=int(arguments.get("v_head_dim", 128)),
    )
