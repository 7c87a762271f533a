"""Settings of a vision-language model's tower and projector.

Command-line flags are made from this class, as those of `CompeteConfig`. Names are those of Megatron-LM's examples/multimodal
where it has one. Sizes of images are Megatron's own --img-h, --img-w and --patch-dim; the language model's are Megatron's.
"""

import argparse
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from megatron_compete.common.config_fields import check_fields
from megatron_compete.common.errors import CompeteError

Part = Literal["vision", "projector", "language"]
"""Parts of a model in the order in which a token passes them, and in which layers are numbered."""
PARTS: tuple[Part, ...] = get_args(Part)

FLAGS = {
    "disable_class_token": "--disable-vision-class-token",
    "experts_in": "--experts-in",
    "projector_ffn_hidden_size": "--projector-ffn-hidden-size",
    "freeze_language": "--freeze-LM",
    "freeze_tower": "--freeze-ViT",
    "freeze_projector": "--freeze-projector",
    "recompute": "--recompute-vision",
    "image_token": "--image-token",
}
"""Of fields that are not --vision-NAME."""

LAYERNORM_EPSILON = {"clip": 1e-5, "siglip": 1e-6}
"""Of `CLIPVisionConfig` and `SiglipVisionConfig` (transformers)."""


@dataclass(frozen=True)
class VisionConfig:
    """Tower, projector, and which parts have experts."""

    model_type: Literal["clip", "siglip"] | None = None
    """Kind of vision tower; makes the model a vision-language model. Left out: a language model."""

    num_layers: int | None = None
    """Layers of the tower. LLaVA takes the states before the last layer, so this is one less than the tower was trained
    with: 26 of SigLIP-SO400M's 27, 23 of CLIP ViT-L's 24."""

    hidden_size: int | None = None
    """Hidden size of the tower."""

    ffn_hidden_size: int | None = None
    """Width of the tower's MLPs, and of each of its experts (default: 4 * --vision-hidden-size)."""

    num_attention_heads: int | None = None
    """Attention heads of the tower."""

    layernorm_epsilon: float | None = None
    """Epsilon of the tower's layer norms (default: 1e-5 for clip, 1e-6 for siglip)."""

    init_method_std: float | None = None
    """Standard deviation of the tower's and projector's initial weights (default: --init-method-std)."""

    disable_class_token: bool = False
    """Leave the class token of a clip tower out of what the language model sees, as LLaVA does."""

    experts_in: tuple[Part, ...] = ("vision", "projector")
    """Parts that have --num-experts experts in place of dense MLPs: vision, projector, language (default: vision projector)."""

    num_experts: int | None = None
    """Experts of each layer of tower and projector, where the language model has another number (default: --num-experts)."""

    router_topk: int | None = None
    """Experts of a patch, where those of a token are another number (default: --moe-router-topk)."""

    projector_ffn_hidden_size: int | None = None
    """Width of the projector's MLP, and of each of its experts (default: --hidden-size)."""

    freeze_language: bool = False
    """Do not train the language model."""

    freeze_tower: bool = False
    """Do not train the vision tower."""

    freeze_projector: bool = False
    """Do not train the projector."""

    recompute: bool = False
    """Recompute the tower's activations as --recompute-granularity and its kin say for the language model's."""

    image_token: str = "<image>"
    """Token of the tokenizer that stands for an image in a prompt."""

    def __post_init__(self) -> None:
        check_fields(self, flag_of)
        object.__setattr__(self, "experts_in", tuple(self.experts_in))
        for part in self.experts_in:
            if part not in PARTS:
                raise CompeteError(
                    f"{flag_of('experts_in')} {part} is no part of a model: choose from {', '.join(PARTS)}"
                )
        if self.model_type is None:
            self._check_unused()
        else:
            self._check_tower()

    def _check_unused(self) -> None:
        """A language model: no setting of a tower's may be given."""
        for field in fields(self):
            if getattr(self, field.name) != field.default:
                raise CompeteError(
                    f"{flag_of(field.name)} is about a vision tower: give --vision-model-type, or leave it out"
                )

    def _check_tower(self) -> None:
        for name in ("num_layers", "hidden_size", "num_attention_heads"):
            if getattr(self, name) is None:
                raise CompeteError(f"--vision-model-type {self.model_type} needs {flag_of(name)}")
        for name in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_experts", "router_topk", "projector_ffn_hidden_size"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CompeteError(f"{flag_of(name)} {value} is out of range: give 1 or more")
        assert self.hidden_size and self.num_attention_heads
        if self.hidden_size % self.num_attention_heads:
            raise CompeteError(
                f"{flag_of('hidden_size')} {self.hidden_size} is no multiple of "
                f"{flag_of('num_attention_heads')} {self.num_attention_heads}"
            )
        if self.model_type == "siglip" and self.disable_class_token:
            raise CompeteError(
                f"{flag_of('disable_class_token')} has no effect on a siglip tower, which has none: leave it out"
            )
        if self.freeze_language and self.freeze_tower and self.freeze_projector:
            raise CompeteError("--freeze-LM, --freeze-ViT and --freeze-projector leave nothing to train: leave one out")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> "VisionConfig":
        """The settings among parsed arguments, or among a checkpoint's; those of a language model where there are none.

        Raises:
            CompeteError: a setting that is missing, has no effect or is out of range.
        """
        given: dict[str, Any] = {field.name: getattr(args, dest_of(field.name), field.default) for field in fields(cls)}
        return cls(**given)

    @property
    def epsilon(self) -> float:
        """Of the tower's layer norms."""
        assert self.model_type is not None
        return LAYERNORM_EPSILON[self.model_type] if self.layernorm_epsilon is None else self.layernorm_epsilon


def flag_of(field: str) -> str:
    """The command-line flag of a field of `VisionConfig`."""
    return FLAGS.get(field, "--vision-" + field.replace("_", "-"))


def dest_of(field: str) -> str:
    """The name of a field of `VisionConfig` among parsed arguments, and in a checkpoint's."""
    return flag_of(field).removeprefix("--").replace("-", "_")
