"""LLaVA: a vision tower, a projector and any language family here, as one model.

The language model is read and written by its own family; the tower by `siglip_vision` or `clip_vision`, the projector by
`projector`. This file says how the three make one config.json, in both directions.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_compete.checkpoint.families.clip_vision import CLIP_VISION
from megatron_compete.checkpoint.families.config_fields import check_fields, complete
from megatron_compete.checkpoint.families.dimensions import Dimensions
from megatron_compete.checkpoint.families.family import Family
from megatron_compete.checkpoint.families.nemotron_h import NEMOTRON_H
from megatron_compete.checkpoint.families.projector import EXPERT_PROJECTOR, PROJECTOR
from megatron_compete.checkpoint.families.registry import FAMILIES, choose_family, read_config
from megatron_compete.checkpoint.families.siglip_vision import SIGLIP_VISION
from megatron_compete.checkpoint.families.vision import (
    experts_of,
    projector_dimensions,
    tower_dimensions,
    vision_settings,
)
from megatron_compete.common.errors import CompeteError
from megatron_compete.vlm.config import PARTS, Part

STOCK, CUSTOM = "llava", "competellava"
"""`model_type` of transformers' class, and of this project's, whose tower and projector may have experts."""

TOWERS = {"siglip": SIGLIP_VISION, "clip": CLIP_VISION}
"""By --vision-model-type."""

WHOLE = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}
"""Kinds of models that hold a tower beside a text encoder, and the tower's."""

MEGATRON = {"language": "language_model.", "vision": "vision_model.", "projector": "vision_projection.encoder."}
"""Prefixes of the parts' keys (upstream: `LLaVAModel`)."""

PICTURES = "its projector or its positions are others than LLaVA's, which alone are converted"
NO_EQUAL = {
    "llava_next": "it cuts pictures into tiles by their size (anyres)",
    "llava_next_video": "it cuts pictures into tiles by their size (anyres)",
    "llava_onevision": "it cuts pictures into tiles by their size (anyres)",
    "vipllava": "it takes several layers of its tower",
    "video_llava": "it has a tower for videos",
    "llava_llama": "it is in the layout of LLaVA's own code: take the model's -hf folder, or convert it with transformers' script",
    "llava_qwen": "it is in the layout of LLaVA's own code: take the model's -hf folder, or convert it with transformers' script",
    "qwen2_vl": "it has M-RoPE, positions in three axes",
    "qwen2_5_vl": "it has M-RoPE, positions in three axes",
    "qwen3_vl": "it has M-RoPE, positions in three axes",
    "glm4v": "it has M-RoPE, positions in three axes",
    "internvl": "it shuffles pixels between tower and projector",
    "internvl_chat": "it shuffles pixels between tower and projector",
    "idefics3": "it shuffles pixels between tower and projector",
    "smolvlm": "it shuffles pixels between tower and projector",
    "mistral3": "it merges patches between tower and projector",
    "paligemma": PICTURES,
    "gemma3": PICTURES,
    "mllama": "its language model attends to pictures in layers of its own",
    "phi3_v": "it has LongRoPE, which Megatron has not",
    "phi4_multimodal": "it has LongRoPE, which Megatron has not",
}  # fmt: skip
"""Other vision-language architectures that people train, and what is not converted of each."""


@dataclass(frozen=True)
class Llava:
    """The families of a vision-language model's parts."""

    language: Family
    tower: Family
    projector: Family

    def of(self, part: Part) -> Family:
        """The family of one part."""
        return {"vision": self.tower, "projector": self.projector, "language": self.language}[part]

    @property
    def title(self) -> str:
        """As in messages."""
        return f"{self.tower.title}, projector and {self.language.title}"

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise a `CompeteError` that names the first argument under which tower or projector are not exactly these."""
        for part in ("vision", "projector"):
            if experts_of(arguments, part)[0]:
                self.of(part).check(arguments)


def is_llava_config(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a vision-language model, converted or not."""
    return config.get("model_type") in (STOCK, CUSTOM) or config.get("model_type") in NO_EQUAL


def language_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the language model: without experts where only tower and projector have any."""
    experts, _ = experts_of(arguments, "language")
    return {**arguments, "num_experts": experts or None}


def with_experts(arguments: Mapping[str, Any], parts: tuple[Part, ...], experts: int, k: int) -> dict[str, Any]:
    """Arguments of the model in which `parts` have experts beside those that have them already."""
    has = [part for part in PARTS if part in parts or experts_of(arguments, part)[0]]
    made = dict(arguments) | {"experts_in": has}
    if arguments.get("num_experts"):
        return made | {"vision_num_experts": experts, "vision_router_topk": k}
    return made | {"num_experts": experts, "moe_router_topk": k}


def choose_llava(arguments: Mapping[str, Any], name: str | None = None) -> Llava:
    """The families of a trained model; the language model's as `choose_family` finds it.

    Raises:
        CompeteError: names the argument that cannot be expressed.
    """
    language = choose_family(language_arguments(arguments), name)
    if language.code:
        stock = ", ".join(one.name for one in FAMILIES.values() if not one.code)
        raise CompeteError(
            f"the language model is none of transformers' own architectures ({stock}), which alone stand behind a tower: "
            "--family NAME says what keeps it from being the one you mean"
        )
    settings = vision_settings(arguments)
    assert settings.model_type
    projector = EXPERT_PROJECTOR if experts_of(arguments, "projector")[0] else PROJECTOR
    found = Llava(language, TOWERS[settings.model_type], projector)
    found.check(arguments)
    return found


def part_dimensions(arguments: Mapping[str, Any], part: Part, padded: int | None = None, vocab: int | None = None) -> Dimensions:  # fmt: skip
    """Sizes of one part; of the language model with rows of the embedding, and ids in use."""
    if part == "vision":
        return tower_dimensions(arguments)
    if part == "projector":
        return projector_dimensions(arguments)
    return Dimensions.from_arguments(language_arguments(arguments), padded, vocab)


def is_custom(arguments: Mapping[str, Any]) -> bool:
    """Whether transformers' own class cannot express tower and projector."""
    width = vision_settings(arguments).projector_ffn_hidden_size or arguments["hidden_size"]
    experts = experts_of(arguments, "vision")[0] or experts_of(arguments, "projector")[0]
    return bool(experts) or width != arguments["hidden_size"]


def picture_embeddings(arguments: Mapping[str, Any]) -> int:
    """How many embeddings a picture has in the decoder's sequence."""
    return tower_dimensions(arguments).positions - vision_settings(arguments).disable_class_token


def llava_config(llava: Llava, arguments: Mapping[str, Any], language: Dimensions, ids: Mapping[str, Any], image_token_id: int) -> dict[str, Any]:  # fmt: skip
    """The fields of config.json that say what the model is, from Megatron's arguments.

    The tower has the layers that LLaVA takes and no more, so that the states are those behind its last one.
    """
    settings, tower, projector = (
        vision_settings(arguments),
        tower_dimensions(arguments),
        projector_dimensions(arguments),
    )
    drops = settings.disable_class_token
    config = {
        "text_config": {
            "model_type": llava.language.name,
            "architectures": [llava.language.architecture],
            **llava.language.to_config(language, language_arguments(arguments)),
            **ids,
        },
        "vision_config": {"model_type": llava.tower.name, **llava.tower.to_config(tower, arguments)},
        "image_token_index": image_token_id,
        "image_seq_length": picture_embeddings(arguments),
        **llava.projector.to_config(projector, arguments),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default" if drops else "full",
        "tie_word_embeddings": language.tied,
    }
    return config | (_custom_fields(arguments, projector) if is_custom(arguments) else {})


def _custom_fields(arguments: Mapping[str, Any], projector: Dimensions) -> dict[str, Any]:
    parts = [part for part in ("vision", "projector") if experts_of(arguments, part)[0]]
    experts, k = experts_of(arguments, parts[0]) if parts else (0, 0)  # type: ignore[arg-type]
    return {
        "experts_in": parts,
        "num_experts": experts,
        "num_experts_per_tok": k,
        "router_in_fp32": arguments.get("moe_router_dtype") in ("fp32", "fp64"),
        "projector_intermediate_size": projector.ffn,
    }


def read_llava(config: Mapping[str, Any]) -> tuple[Llava, dict[str, Any]]:
    """Families and Megatron's arguments of a LLaVA's config.json, as `read_config` reads a language model's.

    Raises:
        CompeteError: another architecture, or a field that cannot be expressed.
    """
    if (kind := config.get("model_type")) in NO_EQUAL:
        raise CompeteError(
            f"config.json has model_type {kind}: {NO_EQUAL[str(kind)]}; LLaVA's models (llava) are converted"
        )
    check_decoder((config.get("text_config") or {}).get("model_type"))
    given = _complete(config)
    language, arguments = _in("text_config", read_config, given["text_config"])
    arguments |= read_tower(given["vision_config"], given["vision_feature_layer"])
    arguments |= class_token(arguments, given["vision_feature_select_strategy"])
    arguments |= PROJECTOR.to_arguments(given)
    arguments["hf_image_token_id"] = given["image_token_index"]
    if arguments.get("num_experts"):
        arguments["experts_in"] = ["language"]
    if given.get("num_experts"):
        arguments = with_experts(
            arguments, tuple(given["experts_in"]), given["num_experts"], given["num_experts_per_tok"]
        )
        arguments["moe_router_dtype"] = "fp32" if given.get("router_in_fp32") else None
    settings = vision_settings(arguments)
    assert settings.model_type
    projector = EXPERT_PROJECTOR if experts_of(arguments, "projector")[0] else PROJECTOR
    return Llava(language, TOWERS[settings.model_type], projector), arguments


def check_decoder(model_type: Any) -> None:
    """Raise a `CompeteError` for a language model that Megatron has none of behind a tower (upstream: `LLaVAModel`)."""
    if model_type == NEMOTRON_H.name:
        raise CompeteError(
            f"the language model has model_type {model_type}, a hybrid: behind a tower Megatron has decoders of attention and "
            "MLP layers alone; take one of these"
        )


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the defaults of transformers' class filled in."""
    from transformers import LlavaConfig

    tied = config.get("tie_word_embeddings")
    try:
        given: dict[str, Any] = LlavaConfig.from_dict(copy.deepcopy(dict(config) | {"model_type": STOCK})).to_dict()
        if tied is not None:
            given["text_config"]["tie_word_embeddings"] = tied
    except Exception as error:  # the classes validate in many ways
        raise CompeteError(f"config.json is not that of a LLaVA: {error}") from error
    return given


def _in(section: str, read: Any, config: Mapping[str, Any]) -> Any:
    """What `read` makes of a section; its errors say which one it was."""
    try:
        return read(config)
    except CompeteError as error:
        raise CompeteError(f"{section} of {error}") from error


def read_tower(config: Mapping[str, Any], feature_layer: Any) -> dict[str, Any]:
    """Megatron's arguments for a tower of which a projector takes one layer's states.

    Args:
        config: of the tower alone, or of a model that holds it beside a text encoder.
        feature_layer: index into the states before the first layer and behind each.
    Raises:
        CompeteError: another tower, or a field or layer that cannot be expressed.
    """
    kind = config.get("model_type")
    if kind in WHOLE:
        kind, config = WHOLE[kind], config.get("vision_config") or {}
    family = next((one for one in TOWERS.values() if one.name == kind), None)
    if family is None:
        names = ", ".join(one.name for one in TOWERS.values())
        raise CompeteError(f"the tower's config.json has model_type {kind}: supported are {names}, siglip and clip")
    given = _in("vision_config", lambda one: complete(family, one), config)
    given["num_hidden_layers"] = _layers_taken(given["num_hidden_layers"], feature_layer)
    arguments = family.to_arguments(given)
    made = complete(family, family.to_config(tower_dimensions(arguments), arguments))
    for unused in ("vision_use_head", "projection_dim", "initializer_factor"):
        made[unused] = given.get(unused)
    _in("vision_config", lambda one: check_fields(family, one, made), given)
    return arguments


def _layers_taken(layers: int, feature_layer: Any) -> int:
    """Layers of the tower before the states that `feature_layer` names.

    Raises:
        CompeteError: several layers, or none of the tower's.
    """
    if not isinstance(feature_layer, int):
        raise CompeteError(
            f"vision_feature_layer {feature_layer} takes the states of several layers: the projector has those of one here"
        )
    taken = feature_layer if feature_layer >= 0 else layers + 1 + feature_layer
    if not 1 <= taken <= layers:
        raise CompeteError(
            f"vision_feature_layer {feature_layer} is none of the tower's {layers} layers: give -2, as LLaVA does"
        )
    return taken


def class_token(arguments: Mapping[str, Any], strategy: str) -> dict[str, Any]:
    """Whether the language model sees the class token.

    Raises:
        CompeteError: a tower without one, of which the first patch would be dropped.
    """
    if strategy == "default" and arguments["vision_model_type"] == "siglip":
        raise CompeteError(
            "config.json has vision_feature_select_strategy default, which drops a SigLIP tower's first patch in place of a "
            "class token: set it to full"
        )
    return {"disable_vision_class_token": strategy == "default"}
