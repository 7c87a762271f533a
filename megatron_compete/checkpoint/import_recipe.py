"""A recipe that trains an imported model: Megatron's arguments as flags.

Megatron takes only some of a checkpoint's arguments over (`--use-checkpoint-args`); QK-norm, the norms' epsilon and
others it would leave at their defaults and train another model. So an import writes all of them down.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from megatron_compete.checkpoint.families.requirements import BLOCK, DENSE, EXPERTS
from megatron_compete.common.yaml_file import dump_yaml
from megatron_compete.vlm.config import VisionConfig, dest_of, flag_of

RECIPE = "recipe.yaml"
PRETRAINED = "pretrained-checkpoint"

RENAMED = {
    "layernorm_epsilon": "norm-epsilon",
    "layernorm_zero_centered_gamma": "apply-layernorm-1p",
    **{dest_of(field.name): flag_of(field.name).removeprefix("--") for field in fields(VisionConfig)},
}
NEGATED = {
    "add_bias_linear": "disable-bias-linear",
    "yarn_correction_range_round_to_int": "no-yarn-correction-range-round-to-int",
}
"""Arguments that a flag of another name switches off (upstream: megatron/training/arguments.py)."""

SIZES = frozenset({
    "num_layers", "hidden_size", "num_attention_heads", "group_query_attention", "num_query_groups", "kv_channels",
    "ffn_hidden_size", "max_position_embeddings", "seq_length", "layernorm_epsilon", "rotary_base", "init_method_std",
    "attention_dropout", "hidden_dropout", "untie_embeddings_and_output_weights", "moe_ffn_hidden_size", "num_experts",
    "moe_router_topk", "moe_token_dispatcher_type", "moe_router_dtype", "rope_scaling_factor", "rotary_scaling_factor",
    "yarn_original_max_position_embeddings", "yarn_beta_fast", "yarn_beta_slow", "yarn_correction_range_round_to_int",
    "mamba_num_heads", "mamba_head_dim", "mamba_num_groups", "mamba_state_dim", "window_attn_skip_freq", "linear_conv_kernel_dim", "linear_key_head_dim", "linear_value_head_dim",
    "linear_num_key_heads", "linear_num_value_heads", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim", "mscale", "mscale_all_dim",
    "tokenizer_type", "tokenizer_model", "vocab_size", "padded_vocab_size", "compete_diversity_coeff",
})  # fmt: skip
"""Arguments that say what the model is, beside those that `families.requirements` lists."""

VISION = frozenset({dest_of(field.name) for field in fields(VisionConfig)}) | {
    "img_h",
    "img_w",
    "patch_dim",
    "image_processor",
}
"""Of vision-language models, with the folder of the image processor."""

NOT_FLAGS = frozenset({"apply_layernorm_1p", "is_hybrid_model", "spec"})
"""Listed as requirements; derived by Megatron, or set by the entry."""

WORDS = ("experts_in",)
"""Arguments whose list is several words behind the flag."""

MODEL_ARGUMENTS = SIZES | VISION | {one.argument for one in (*BLOCK, *DENSE, *EXPERTS)} - NOT_FLAGS


START: dict[str, Any] = {
    "train-iters": 100, "lr": 1e-5, "micro-batch-size": 1, "global-batch-size": 8, "save-interval": 100,
    "split": "100,0,0", "eval-iters": 0,
}  # fmt: skip
"""How to train, so that the recipe runs as it is: a first look at any model on any data, to be overridden."""


def model_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a trainer's arguments that say what the model is."""
    return {name: value for name, value in arguments.items() if name in MODEL_ARGUMENTS}


def flags(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by Megatron's internal names as a recipe's: `{flag without dashes: value}`; True is the bare flag."""
    result: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in NEGATED:
            if value is False:
                result[NEGATED[name]] = True
        elif value is not None and value is not False:
            flag = RENAMED.get(name, name.replace("_", "-"))
            result[flag] = value if name in WORDS else _written(value)
    return result


def _written(value: Any) -> Any:
    """A list as the expression, and a tuple as the numbers that Megatron's parser reads."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).replace(" ", "") if isinstance(value, list) else value


def write_recipe(folder: Path, arguments: Mapping[str, Any], checkpoint: Path, note: str) -> None:
    """Write `recipe.yaml` into `folder`.

    Args:
        arguments: of the model.
        checkpoint: the folder's final place: training starts from its weights where --load has nothing yet.
        note: one line for the head of the file.
    """
    content = {"arguments": {**flags(arguments), PRETRAINED: str(checkpoint), **START}}
    text = dump_yaml(content)
    (folder / RECIPE).write_text(
        f"# {note}\n# From train-iters on it is a first look: data, lengths, batches, learning rate and layout are yours to say, here or "
        f"as flags behind it.\n{text}",
        encoding="utf-8",
    )
