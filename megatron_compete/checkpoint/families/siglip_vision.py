"""SigLIP's vision tower, up to the states that a projector takes."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.vision import EXPERTS_OF_PARTS, tower_arguments, tower_config

LAYERS = """
decoder.layers.*.self_attention.linear_qkv.layer_norm_weight -> vision_model.encoder.layers.*.layer_norm1.weight          whole  [H]
decoder.layers.*.input_layernorm.weight                      -> vision_model.encoder.layers.*.layer_norm1.weight          also   [H]
decoder.layers.*.self_attention.linear_qkv.layer_norm_bias   -> vision_model.encoder.layers.*.layer_norm1.bias            whole  [H]
decoder.layers.*.input_layernorm.bias                        -> vision_model.encoder.layers.*.layer_norm1.bias            also   [H]
decoder.layers.*.self_attention.linear_qkv.weight            -> vision_model.encoder.layers.*.self_attn.q_proj.weight     q      [H,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> vision_model.encoder.layers.*.self_attn.k_proj.weight     k      [H,H]
decoder.layers.*.self_attention.linear_qkv.weight            -> vision_model.encoder.layers.*.self_attn.v_proj.weight     v      [H,H]
decoder.layers.*.self_attention.linear_qkv.bias              -> vision_model.encoder.layers.*.self_attn.q_proj.bias       q      [H]
decoder.layers.*.self_attention.linear_qkv.bias              -> vision_model.encoder.layers.*.self_attn.k_proj.bias       k      [H]
decoder.layers.*.self_attention.linear_qkv.bias              -> vision_model.encoder.layers.*.self_attn.v_proj.bias       v      [H]
decoder.layers.*.self_attention.linear_proj.weight           -> vision_model.encoder.layers.*.self_attn.out_proj.weight   whole  [H,H]
decoder.layers.*.self_attention.linear_proj.bias             -> vision_model.encoder.layers.*.self_attn.out_proj.bias     whole  [H]
decoder.layers.*.mlp.linear_fc1.layer_norm_weight            -> vision_model.encoder.layers.*.layer_norm2.weight          whole  [H]
decoder.layers.*.pre_mlp_layernorm.weight                    -> vision_model.encoder.layers.*.layer_norm2.weight          also   [H]
decoder.layers.*.mlp.linear_fc1.layer_norm_bias              -> vision_model.encoder.layers.*.layer_norm2.bias            whole  [H]
decoder.layers.*.pre_mlp_layernorm.bias                      -> vision_model.encoder.layers.*.layer_norm2.bias            also   [H]
decoder.layers.*.mlp.linear_fc1.weight                       -> vision_model.encoder.layers.*.mlp.fc1.weight              whole  [F,H]  dense
decoder.layers.*.mlp.linear_fc1.bias                         -> vision_model.encoder.layers.*.mlp.fc1.bias                whole  [F]    dense
decoder.layers.*.mlp.linear_fc2.weight                       -> vision_model.encoder.layers.*.mlp.fc2.weight              whole  [H,F]  dense
decoder.layers.*.mlp.linear_fc2.bias                         -> vision_model.encoder.layers.*.mlp.fc2.bias                whole  [H]    dense
decoder.layers.*.mlp.router.weight                           -> vision_model.encoder.layers.*.mlp.gate.weight             whole  [E,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.weight     -> vision_model.encoder.layers.*.mlp.experts.*.fc1.weight    whole  [M,H]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc1.bias       -> vision_model.encoder.layers.*.mlp.experts.*.fc1.bias      whole  [M]    experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.weight     -> vision_model.encoder.layers.*.mlp.experts.*.fc2.weight    whole  [H,M]  experts
decoder.layers.*.mlp.experts.experts.*.linear_fc2.bias       -> vision_model.encoder.layers.*.mlp.experts.*.fc2.bias      whole  [H]    experts
"""
"""Of CLIP's tower too; lines with experts are of this project's class."""

KEYS = read_keys(f"""
conv1.weight                -> vision_model.embeddings.patch_embedding.weight     whole  [H,3,P,P]
conv1.bias                  -> vision_model.embeddings.patch_embedding.bias       whole  [H]
position_embeddings.weight  -> vision_model.embeddings.position_embedding.weight  whole  [T,H]
{LAYERS}""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return tower_config(d, arguments, "gelu_pytorch_tanh") | {"vision_use_head": False}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return tower_arguments(config, "siglip")


SIGLIP_VISION = Family(
    name="siglip_vision_model",
    title="SigLIP tower",
    architecture="SiglipVisionModel",
    requirements=EXPERTS_OF_PARTS,
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
