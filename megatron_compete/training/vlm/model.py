"""Megatron's configuration of a vision-language model, and the builder that it names.

A `GPTModelConfig` whose transformer is the decoder's, with tower and projector beside it: `pretrain` builds its model as it
does any other.
"""

import argparse
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from megatron.core.pipeline_parallel.utils import is_pp_first_stage, is_pp_last_stage
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training import get_tokenizer
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig, default_layer_spec
from megatron.training.vocab_utils import calculate_padded_vocab_size

from megatron_compete.common.errors import CompeteError
from megatron_compete.moe.competition import ModelPart
from megatron_compete.vlm.config import VisionConfig
from megatron_compete.vlm.exchange import Exchanges, stock_parts
from megatron_compete.vlm.model import VisionLanguageModel, build_model
from megatron_compete.vlm.parts import VisionLanguageConfig
from megatron_compete.vlm.validation import check_model


@dataclass(kw_only=True)
class VisionLanguageModelConfig(GPTModelConfig):
    """A decoder's configuration, with what comes before it."""

    builder: ClassVar[str] = "megatron_compete.training.vlm.model.VisionLanguageModelBuilder"
    vision_language: VisionLanguageConfig
    exchanges: Exchanges
    """What stands for the MoE layers of each part."""
    image_token_id: int | None = None
    """Id of the token that stands for an image; None: as the trainer's tokenizer has it."""

    def parts(self) -> tuple[ModelPart, ...]:
        """For `competing_layers`."""
        return self.vision_language.parts()


class VisionLanguageModelBuilder(GPTModelBuilder):
    """Builds a pipeline stage; wrapping for distributed training is as a GPT's."""

    def build_model(
        self,
        pg_collection: ProcessGroupCollection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> VisionLanguageModel:
        """As upstream's; virtual stages there are none (`vlm/validation.py`)."""
        config: Any = self._model_config
        image_token_id = config.image_token_id
        if image_token_id is None:
            image_token_id = token_id(get_tokenizer(), config.vision_language.settings.image_token)
        return build_model(
            config.vision_language,
            config.exchanges,
            vocab_size=_rows(config),
            seq_length=config.seq_length,
            image_token_id=image_token_id,
            position_embedding_type=config.position_embedding_type,
            rotary_base=config.rotary_base,
            rotary_percent=config.rotary_percent,
            rope_scaling=config.rope_scaling,
            rope_scaling_factor=config.rope_scaling_factor,
            share_embeddings_and_output_weights=config.share_embeddings_and_output_weights,
            fp16_lm_cross_entropy=config.fp16_lm_cross_entropy,
            parallel_output=config.parallel_output,
            language_spec=default_layer_spec(config, vp_stage),
            pre_process=is_pp_first_stage(pg_collection.pp) if pre_process is None else pre_process,
            post_process=is_pp_last_stage(pg_collection.pp) if post_process is None else post_process,
            groups=pg_collection,
        )


def token_id(tokenizer: Any, token: str) -> int:
    """Id of one token of Megatron's tokenizer.

    Raises:
        CompeteError: it has no such token.
    """
    ids = tokenizer.tokenize(token)
    if len(ids) != 1:
        raise CompeteError(
            f"--image-token {token} is {len(ids)} tokens of the tokenizer: add it as a special token (to a Hugging Face folder: "
            "tokenizer.add_special_tokens), or name the one that it has"
        )
    return int(ids[0])


def _rows(config: GPTModelConfig) -> int:
    """Rows of the embedding, as `GPTModelBuilder.build_model` counts them."""
    assert config.vocab_size is not None, "pretrain sets it"
    if not config.should_pad_vocab:
        return config.vocab_size
    return calculate_padded_vocab_size(
        config.vocab_size, config.make_vocab_size_divisible_by, config.transformer.tensor_model_parallel_size
    )


def vision_language_config(args: argparse.Namespace, base: TransformerConfig) -> VisionLanguageModelConfig:
    """The configuration that these arguments ask for, with Megatron's own MoE layers.

    Args:
        base: the TransformerConfig of all arguments.
    Raises:
        CompeteError: settings that exclude each other.
    """
    settings = VisionConfig.from_arguments(args)
    check_model(base, settings)
    parts = VisionLanguageConfig.of(base, settings, args.img_h, args.img_w, args.patch_dim)
    decoder = gpt_config_from_args(args, parts.transformer)
    values = {field.name: getattr(decoder, field.name) for field in fields(GPTModelConfig)}
    values["seq_length"] = args.seq_length
    return VisionLanguageModelConfig(**values, vision_language=parts, exchanges=stock_parts(parts))
