"""A vision-language model's parts, in the order in which a token passes them, and the numbers of their layers."""

from dataclasses import dataclass

from megatron.core.models.vision.clip_vit_model import get_num_image_embeddings
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.moe.competition import ModelPart
from megatron_compete.vlm.config import PARTS, Part, VisionConfig
from megatron_compete.vlm.transformers import language_transformer, projector_transformer, tower_transformer
from megatron_compete.vlm.validation import FROZEN

PICTURE_CHANNELS = 3


@dataclass
class VisionLanguageConfig:
    """What a vision-language model is built from."""

    settings: VisionConfig
    transformer: TransformerConfig
    """Of the language model."""
    tower: TransformerConfig
    projector: TransformerConfig
    img_h: int
    """Height of a tile, in pixels."""
    img_w: int
    patch_dim: int
    """Side of a patch, in pixels."""

    @classmethod
    def of(
        cls, base: TransformerConfig, settings: VisionConfig, img_h: int, img_w: int, patch_dim: int
    ) -> "VisionLanguageConfig":
        """The configuration from the TransformerConfig of all arguments.

        Raises:
            CompeteError: settings that exclude each other.
        """
        return cls(
            settings,
            language_transformer(base, settings),
            tower_transformer(base, settings),
            projector_transformer(base, settings),
            img_h,
            img_w,
            patch_dim,
        )

    def transformer_of(self, part: Part) -> TransformerConfig:
        """The settings of one part."""
        return {"vision": self.tower, "projector": self.projector, "language": self.transformer}[part]

    def layers_before(self, part: Part) -> int:
        """Layers of the parts before it, with experts or without; the projector counts as one."""
        return sum(self.transformer_of(one).num_layers for one in PARTS[: PARTS.index(part)])

    def parts(self) -> tuple[ModelPart, ...]:
        """The parts as `moe.competition` counts their layers: tower 1..V, projector V+1, decoder from V+2."""
        return tuple(ModelPart(self.transformer_of(part), self.layers_before(part)) for part in PARTS)

    @property
    def with_experts(self) -> tuple[Part, ...]:
        """Parts whose MLPs are mixtures of experts."""
        return tuple(part for part in PARTS if self.transformer_of(part).num_moe_experts)

    def trains(self, part: Part) -> bool:
        """Whether the weights of a part are trained."""
        return not getattr(self.settings, FROZEN[part])

    def gradients_reach(self, part: Part) -> bool:
        """Whether gradients go back into what a part gets: the embeddings and patches before it are trained."""
        if part == "vision":
            return self.trains(part)
        before = PARTS[: PARTS.index(part)]
        return any(self.trains(one) for one in before) or (part == "language" and self.trains(part))

    def backward_products(self, part: Part) -> int:
        """Products of a matrix in the backward pass for its one in the forward pass: for the gradient of what it is applied
        to, and for its own."""
        return int(self.gradients_reach(part)) + int(self.trains(part))

    @property
    def patch_values(self) -> int:
        """Numbers that a patch of a picture is made of."""
        return PICTURE_CHANNELS * self.patch_dim**2

    @property
    def patches(self) -> int:
        """Of a tile: the whole ones."""
        return (self.img_h // self.patch_dim) * (self.img_w // self.patch_dim)

    @property
    def class_tokens(self) -> int:
        """Tokens of a tile in the tower beside its patches."""
        return 1 if self.settings.model_type == "clip" else 0

    @property
    def tower_tokens(self) -> int:
        """Tokens of a tile in the tower."""
        return self.patches + self.class_tokens

    @property
    def image_embeddings(self) -> int:
        """Embeddings that a tile takes in the language model's sequence."""
        assert self.settings.model_type is not None
        return image_embeddings(
            self.img_h, self.img_w, self.patch_dim, self.settings.model_type, self.settings.disable_class_token
        )


def image_embeddings(img_h: int, img_w: int, patch_dim: int, model_type: str, disable_class_token: bool) -> int:
    """Embeddings that a tile takes in the language model's sequence: a clip tower's class token counts unless it is left out."""
    return int(
        get_num_image_embeddings(
            img_h, img_w, patch_dim, model_type, disable_class_token, class_token_len=1, pixel_shuffle=False
        )
    )
