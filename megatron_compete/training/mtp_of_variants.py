"""Multi-token prediction beside an experimental attention variant, as Qwen3-Next has it."""

from collections.abc import Callable
from typing import Any

from megatron.core.models.gpt.experimental_attention_variant_module_specs import (
    get_transformer_layer_with_experimental_attention_variant_spec,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec

from megatron_compete.upstream import Replacement, wrap_symbol


def predicting_like_the_last_layer() -> Replacement:
    """Within it, Megatron's trainer builds the layers of multi-token prediction like the decoder's last one, as it does
    without a variant."""
    return wrap_symbol("megatron.training.models.gpt:mtp_block_spec", _mtp_block_spec)


def _mtp_block_spec(
    upstream: Callable[..., Any], config: Any, transformer_layer_spec: Any, vp_stage: int | None = None
) -> Any:
    transformer = config.transformer
    if transformer.mtp_num_layers is None or transformer.experimental_attention_variant is None:
        return upstream(config, transformer_layer_spec, vp_stage=vp_stage)
    last = get_transformer_layer_with_experimental_attention_variant_spec(transformer)[-1]
    use_transformer_engine = transformer.transformer_impl == "transformer_engine"
    return get_gpt_mtp_block_spec(transformer, last, use_transformer_engine, vp_stage)
