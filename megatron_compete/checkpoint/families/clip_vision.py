"""CLIP's vision tower, up to the states that a projector takes: SigLIP's with a class token and a norm in front."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.siglip_vision import LAYERS
from megatron_compete.checkpoint.families.vision import EXPERTS_OF_PARTS, tower_arguments, tower_config

KEYS = read_keys(f"""
class_token                 -> vision_model.embeddings.class_embedding            token  [H]
conv1.weight                -> vision_model.embeddings.patch_embedding.weight     whole  [H,3,P,P]
position_embeddings.weight  -> vision_model.embeddings.position_embedding.weight  whole  [T,H]
ln_pre.weight               -> vision_model.pre_layrnorm.weight                   whole  [H]
ln_pre.bias                 -> vision_model.pre_layrnorm.bias                     whole  [H]
{LAYERS}""")


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return tower_config(d, arguments, "quick_gelu")


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return tower_arguments(config, "clip")


CLIP_VISION = Family(
    name="clip_vision_model",
    title="CLIP tower",
    architecture="CLIPVisionModel",
    requirements=EXPERTS_OF_PARTS,
    keys=KEYS,
    to_config=_config,
    to_arguments=_arguments,
)
