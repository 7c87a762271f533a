"""LLaVA's projector: a linear layer, exact GELU, a linear layer; or experts of that form behind a router."""

from collections.abc import Mapping
from typing import Any

from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.key_table import read_keys
from megatron_compete.checkpoint.families.vision import EXPERTS_OF_PARTS
from megatron_compete.common.errors import CompeteError

DENSE_KEYS = read_keys("""
linear_fc1.weight -> linear_1.weight  whole  [F,VH]
linear_fc1.bias   -> linear_1.bias    whole  [F]
linear_fc2.weight -> linear_2.weight  whole  [H,F]
linear_fc2.bias   -> linear_2.bias    whole  [H]
""")

EXPERT_KEYS = read_keys("""
router.weight                        -> gate.weight                whole  [E,VH]
experts.experts.*.linear_fc1.weight  -> experts.*.linear_1.weight  whole  [F,VH]
experts.experts.*.linear_fc1.bias    -> experts.*.linear_1.bias    whole  [F]
experts.experts.*.linear_fc2.weight  -> experts.*.linear_2.weight  whole  [H,F]
experts.experts.*.linear_fc2.bias    -> experts.*.linear_2.bias    whole  [H]
""")
"""With one number, of an expert, where other tables have a layer's: `vision.projector_dimensions` counts experts as layers."""


def _config(d: Dimensions, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """`projector_intermediate_size` is a field of this project's class alone.

    Raises:
        CompeteError: another projector.
    """
    if config["projector_hidden_act"] != "gelu":
        raise CompeteError(
            f"config.json has projector_hidden_act {config['projector_hidden_act']}: Megatron's projector here has gelu alone"
        )
    if not config["multimodal_projector_bias"]:
        raise CompeteError(
            "config.json has multimodal_projector_bias false: Megatron's projector here has biases; add biases of zeros, and "
            "set it to true"
        )
    width = config.get("projector_intermediate_size") or config["text_config"]["hidden_size"]
    return {"projector_ffn_hidden_size": width}


def _projector(keys: str) -> Family:
    return Family(
        name="projector",
        title="projector",
        architecture="LlavaMultiModalProjector",
        requirements=EXPERTS_OF_PARTS,
        keys=EXPERT_KEYS if keys == "experts" else DENSE_KEYS,
        to_config=_config,
        to_arguments=_arguments,
    )


PROJECTOR, EXPERT_PROJECTOR = _projector("dense"), _projector("experts")
