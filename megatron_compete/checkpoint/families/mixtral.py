"""Mixtral: every layer a mixture of SwiGLU experts behind a softmax over the K best.

Names are those of the published checkpoints (`block_sparse_moe.experts.E.w1` gate, `w3` up, `w2` down).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_compete.checkpoint.families.blocks import Mlp, decoder, grouped_attention, router
from megatron_compete.checkpoint.families.configs import decoder_arguments, decoder_config, softmax_router_arguments
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family, TensorRule
from megatron_compete.checkpoint.families.requirements import BLOCK, EXPERTS

EXPERT = Mlp("w1", "w3", "w2")


def _experts(d: Dimensions, layer: int, prefix: str) -> Iterator[TensorRule]:
    yield router(d, layer, prefix + "block_sparse_moe.gate.weight")
    yield from EXPERT.experts(d, layer, prefix + "block_sparse_moe.experts.")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return decoder_config(d, arguments) | {
        "head_dim": d.head,
        "intermediate_size": d.expert_ffn,
        "num_local_experts": d.experts,
        "num_experts_per_tok": d.topk,
        "sliding_window": None,
        "output_router_logits": False,
    }


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    experts = softmax_router_arguments(config, config["num_local_experts"], config["intermediate_size"])
    return decoder_arguments(config) | experts


MIXTRAL = Family(
    name="mixtral",
    title="Mixtral",
    architecture="MixtralForCausalLM",
    requirements=BLOCK + EXPERTS,
    tensors=lambda d: decoder(d, grouped_attention, _experts),
    to_config=_config,
    to_arguments=_arguments,
)
