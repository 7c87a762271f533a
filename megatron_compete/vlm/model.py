"""The vision-language model: LLaVAModel with our tower and projector, and its layers numbered through.

A microbatch without an image takes one tile of zeros through tower and projector all the same: ranks that share experts
meet in their collectives, and gradients of all parameters arrive in every microbatch. Its patches are masked for the
routers, and its embeddings are part of no output, so that every gradient of it is exactly 0.

B samples, S tokens of text, P positions of the language model's sequence, H its hidden size.
"""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.models.multimodal.llava_model import LLaVAModel, _load_state_dict_hook_ignore_extra_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor

from megatron_compete.moe.competition import competing_layers
from megatron_compete.moe.gradients import AlsoReaching
from megatron_compete.moe.graphs import eager_modules
from megatron_compete.moe.layer import CompeteMoELayer
from megatron_compete.moe.specs import decoder_layer_spec, with_moe
from megatron_compete.vlm.config import Part
from megatron_compete.vlm.exchange import Exchanges
from megatron_compete.vlm.padding import bias_counts_tokens_alone, padded_positions, spare_padding
from megatron_compete.vlm.parts import VisionLanguageConfig
from megatron_compete.vlm.projector import ExpertProjector, build_projector
from megatron_compete.vlm.tower import VisionTower, tower_layer_spec
from megatron_compete.vlm.transformers import model_transformer


class VisionLanguageModel(LLaVAModel):
    """LLaVAModel with a `VisionTower` and a projector that may have experts.

    `config` is what Megatron's schedule reads; the language model's own is `language_model.config`.

    Args:
        config: of all parts.
        exchanges: what stands for the MoE layers of each part with experts.
        language_spec: of this stage's decoder layers, with their MoE layers as they are to be.
        pre_process, post_process: whether this is the first, the last pipeline stage. Tower and projector lie on the first.
        groups: the model's process groups.
        keywords: of LLaVAModel.
    """

    def __init__(
        self,
        config: VisionLanguageConfig,
        exchanges: Exchanges,
        language_spec: ModuleSpec | TransformerBlockSubmodules,
        pre_process: bool,
        post_process: bool,
        groups: ProcessGroupCollection,
        **keywords: Any,
    ) -> None:
        super().__init__(
            language_transformer_config=config.transformer,
            language_transformer_layer_spec=language_spec,
            vision_transformer_config=config.tower,
            vision_transformer_layer_spec=None,
            drop_vision_class_token=config.settings.disable_class_token,
            vision_projection_config=config.projector,
            vision_projection_layer_spec=None,
            pre_process=pre_process,
            post_process=post_process,
            add_encoder=False,  # LLaVAModel would build Megatron's own
            img_h=config.img_h,
            img_w=config.img_w,
            patch_dim=config.patch_dim,
            pg_collection=groups,
            **keywords,
        )
        self.config = model_transformer(config.transformer, config.tower, config.projector)
        self.model_type = ModelType.encoder_or_decoder
        bias_counts_tokens_alone()
        self._unseen: Tensor | None = None
        self._padding_mask: Tensor | None = None
        if config.transformer.num_moe_experts:
            self.language_model.register_forward_pre_hook(self._with_padding, with_kwargs=True)
        self.add_encoder = pre_process
        if pre_process:
            self._add_encoder(config, exchanges)
        self._settle_layers(config)
        settings = config.settings
        self.freeze(settings.freeze_language, settings.freeze_tower, settings.freeze_projector)
        for layer in moe_layers(self):
            layer.router.frozen_expert_bias = (
                not layer.router.weight.requires_grad
            )  # no parameter, so `freeze` passes it by

    def _add_encoder(self, config: VisionLanguageConfig, exchanges: Exchanges) -> None:
        """Tower and projector, as LLaVAModel would add Megatron's."""
        self._drop_vision_class_token = config.settings.disable_class_token
        spec = tower_layer_spec(config.tower, exchanges.get("vision"))
        self.vision_model = VisionTower(
            config.tower, spec, config.img_h, config.img_w, config.patch_dim, self.pg_collection
        )
        self.vision_projection = build_projector(
            config.projector, config.tower.hidden_size, exchanges.get("projector"), self.pg_collection
        )
        for part in (self.vision_model, self.vision_projection):
            part.register_load_state_dict_post_hook(_load_state_dict_hook_ignore_extra_state)
            for layer in moe_layers(part):
                layer.router.bias = None  # `add_bias_linear` is about experts: the authors' gate has none
                spare_padding(layer)

    def _settle_layers(self, config: VisionLanguageConfig) -> None:
        """Layers know their number in the model, and those that compete the weight of their losses in their part's."""
        modules: dict[Part, Any] = {
            "vision": self.vision_model, "projector": self.vision_projection, "language": self.language_model,
        }  # fmt: skip
        for part, module in modules.items():
            before, of_part = config.layers_before(part), len(competing_layers(config.transformer_of(part)))
            for layer in moe_layers(module) if module is not None else ():
                layer.set_layer_number(before + layer.layer_number)
                if isinstance(layer, CompeteMoELayer):
                    layer.loss_weight = layer.competition.loss_weight(of_part)

    def forward(
        self, images: Tensor | None, input_ids: Tensor, position_ids: Tensor, *args: Any, **keywords: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As LLaVAModel's: per-token losses, or logits, and the mask of the losses that count, both [B, P] (P positions of
        the sequence with image embeddings in it).

        Args:
            images: tiles of all samples in order, [tiles, 3, img_h, img_w]; [0, 3, img_h, img_w] where no sample has an
                image; None on later pipeline stages.
            input_ids: [B, S], one image token for each image.
            position_ids: [B, S]; where samples are filled up on the right, with zeros.
            args, keywords: LLaVAModel's; `num_image_tiles` must be given, one number for each image of the microbatch.
        """
        self._unseen = self._padding_mask = None
        if self.add_encoder and images is not None:
            images = images.to(self.vision_model.conv1.weight.dtype)  # Float16Module converts unnamed arguments alone
        if keywords.get("inference_context") is None:
            if self.add_encoder and images is not None and images.shape[0] == 0:
                self._unseen = self._embed_padding(images)
            self._padding_mask = self._padding(input_ids, position_ids, keywords.get("num_image_tiles"), images)
        try:
            result: tuple[Tensor, Tensor | None] = super().forward(images, input_ids, position_ids, *args, **keywords)
        finally:
            self._unseen = self._padding_mask = None
        return result

    def _padding(
        self, input_ids: Tensor, position_ids: Tensor, num_image_tiles: Tensor | None, images: Tensor | None
    ) -> Tensor | None:
        """Positions that no router of the language model counts, bool [B, P]; None where it has none."""
        if not self.language_model.config.num_moe_experts:
            return None
        if num_image_tiles is None:
            assert images is not None
            num_image_tiles = torch.ones(images.shape[0], dtype=torch.int32, device=images.device)
        longest = self._language_max_sequence_length
        mask = padded_positions(
            position_ids,
            input_ids == self.image_token_index,
            num_image_tiles,
            self.img_seq_len,
            longest if self._language_is_pipeline_parallel else None,
        )
        return mask[:, :longest]

    def _with_padding(self, language_model: Any, args: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What the language model is called with, and the mask that LLaVAModel does not hand on."""
        return args, keywords | {"padding_mask": self._padding_mask}

    def _embed_padding(self, images: Tensor) -> Tensor:
        """The embeddings [patches, 1, H] of a tile of zeros that no router counts."""
        tile = images.new_zeros(1, *images.shape[1:])
        padding = torch.ones(1, self.vision_model.seq_length, dtype=torch.bool, device=images.device)
        states = self.vision_model(tile, padding_mask=padding).transpose(0, 1).contiguous()
        if isinstance(self.vision_projection, ExpertProjector):
            return self.vision_projection(states, padding_mask=padding)
        return self.vision_projection(states)

    def _preprocess_data(
        self, image_embeddings: Tensor | None, language_embeddings: Tensor | None, *args: Any, **keywords: Any
    ) -> Any:
        """As upstream's: image embeddings among those of the text, with labels and loss mask of that length."""
        if self._unseen is not None:
            language_embeddings = AlsoReaching.apply(language_embeddings, self._unseen)
        return super()._preprocess_data(image_embeddings, language_embeddings, *args, **keywords)


def moe_layers(module: torch.nn.Module) -> Iterator[MoELayer]:
    """The MoE layers of a model, or of a part of one."""
    return (layer for layer in module.modules() if isinstance(layer, MoELayer))


def build_model(
    config: VisionLanguageConfig,
    exchanges: Exchanges,
    *,
    vocab_size: int,
    seq_length: int,
    image_token_id: int,
    position_embedding_type: str = "rope",
    rotary_base: int = 10000,
    rotary_percent: float = 1.0,
    rope_scaling: bool = False,
    rope_scaling_factor: float = 8.0,
    share_embeddings_and_output_weights: bool = False,
    fp16_lm_cross_entropy: bool = False,
    parallel_output: bool = True,
    language_spec: ModuleSpec | TransformerBlockSubmodules | None = None,
    pre_process: bool = True,
    post_process: bool = True,
    groups: ProcessGroupCollection | None = None,
) -> VisionLanguageModel:
    """This pipeline stage of a vision-language model.

    Args:
        config: of all parts.
        exchanges: what stands for the MoE layers of each part with experts (`vlm.exchange`).
        vocab_size: rows of the language model's embedding, padding included.
        seq_length: longest sequence with image embeddings in it; at several pipeline stages every sequence's length.
        image_token_id: the token that stands for an image.
        language_spec: Megatron's spec of this stage's decoder layers; default `decoder_layer_spec`'s.
        groups: process groups; default Megatron's global ones.
    """
    spec = decoder_layer_spec(config.transformer) if language_spec is None else language_spec
    if config.transformer.num_moe_experts:
        spec = with_moe(spec, exchanges["language"], eager_modules(config.transformer))
    return VisionLanguageModel(
        config, exchanges, spec, pre_process, post_process,
        groups or ProcessGroupCollection.use_mpu_process_groups(),
        language_vocab_size=vocab_size, language_max_sequence_length=seq_length, image_token_index=image_token_id,
        language_position_embedding_type=position_embedding_type, language_rotary_base=rotary_base,
        language_rotary_percent=rotary_percent, language_rope_scaling=rope_scaling,
        language_rope_scaling_factor=rope_scaling_factor, fp16_lm_cross_entropy=fp16_lm_cross_entropy,
        share_embeddings_and_output_weights=share_embeddings_and_output_weights, parallel_output=parallel_output,
    )  # fmt: skip
