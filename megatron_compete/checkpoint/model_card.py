"""The README.md of an exported model: what it is, how it was trained, how to load it."""

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_compete.checkpoint.families import Family

COMPETE_PREFIX = "compete_"

SECTIONS: dict[str, tuple[str, ...]] = {
    "Model": (
        "num_layers", "hidden_size", "num_attention_heads", "group_query_attention", "num_query_groups", "kv_channels", "num_experts",
        "moe_router_topk", "moe_ffn_hidden_size", "moe_layer_freq", "moe_shared_expert_intermediate_size", "swiglu",
        "relu", "normalization", "qk_layernorm", "multi_latent_attention", "rotary_percent", "seq_length", "max_position_embeddings", "rotary_base",
    ),
    "Pictures": (
        "vision_model_type", "vision_num_layers", "vision_hidden_size", "vision_ffn_hidden_size", "vision_num_attention_heads",
        "img_h", "img_w", "patch_dim", "disable_vision_class_token", "experts_in", "vision_num_experts",
        "vision_router_topk", "projector_ffn_hidden_size", "image_aspect_ratio", "use_tiling", "max_num_tiles",
    ),
    "Training": (
        "train_iters", "train_samples", "consumed_train_samples", "global_batch_size", "micro_batch_size", "optimizer",
        "lr", "min_lr", "lr_decay_style", "lr_warmup_iters", "weight_decay", "clip_grad", "adam_beta1", "adam_beta2",
        "init_method_std", "hidden_dropout", "attention_dropout", "bf16", "fp16", "fp8", "seed", "freeze_LM", "freeze_ViT",
        "freeze_projector",
    ),
    "Routing": (
        "router", "moe_router_score_function", "moe_router_enable_expert_bias", "moe_router_num_groups",
        "moe_router_group_topk", "moe_router_topk_scaling_factor", "moe_router_load_balancing_type", "moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_input_jitter_eps",
        "moe_router_dtype",
    ),
}  # fmt: skip
"""Arguments that the card lists, where the checkpoint has them."""


def model_card(
    family: Family, arguments: Mapping[str, Any], iteration: int, has_tokenizer: bool, of_tokenizer: str | None = None
) -> str:
    """Text of the README.md.

    Args:
        of_tokenizer: what a reader should know of the tokenizer.
    """
    parts = [
        _head(family, arguments),
        trained_for(arguments, iteration),
        _use(family, has_tokenizer),
        *(f"{one[0].upper()}{one[1:]}.\n" for one in (family.caution(arguments), of_tokenizer) if one),
    ]
    return "\n".join(part for part in (*parts, *tables(arguments)) if part)


def tables(arguments: Mapping[str, Any]) -> Iterator[str]:
    """How the model was trained."""
    given = {name: value for name, value in arguments.items() if value is not None and value is not False}
    for title, names in SECTIONS.items():
        yield _table(title, {name: given[name] for name in names if name in given})
    compete = {name: value for name, value in sorted(arguments.items()) if name.startswith(COMPETE_PREFIX)}
    yield _table("Competition", compete)


def trained_for(arguments: Mapping[str, Any], iteration: int) -> str:
    """Where the model comes from."""
    samples = arguments.get("consumed_train_samples") or 0
    tokens = int(samples) * int(arguments.get("seq_length") or 0)
    seen = f" ({tokens:,} tokens)" if tokens else ""
    return f"Exported by megatron-compete from a Megatron-Core checkpoint after {iteration:,} iterations{seen}.\n"


def _table(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = [
        f"| `--{name.replace('_', '-')}` | {str(value).replace('|', chr(92) + '|')} |" for name, value in values.items()
    ]
    return "\n".join([f"## {title}\n", "| argument | value |", "|---|---|", *rows, ""])


def _head(family: Family, arguments: Mapping[str, Any]) -> str:
    experts = arguments.get("num_experts")
    title = f"A mixture of {experts} experts, {arguments.get('moe_router_topk', 2)} a token" if experts else "A decoder"
    tags = "".join(f"- {tag}\n" for tag in (family.name, "mixture-of-experts") if experts or tag == family.name)
    code = _CODE if family.code else ""
    return _HEAD.format(tags=tags, title=title, architecture=family.title, code=code) + (
        _COMPETITION if experts else ""
    )


def _use(family: Family, has_tokenizer: bool) -> str:
    trust = ", trust_remote_code=True" if family.code else ""
    names = ["AutoModelForCausalLM"] + ["AutoTokenizer"] * has_tokenizer
    lines = [
        "```python",
        f"from transformers import {', '.join(names)}",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{trust})',
    ]
    if has_tokenizer:
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"{trust})')
    return "\n".join([*lines, "```", "", _TOKENIZER if has_tokenizer else "The folder holds no tokenizer.\n"])


_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
{tags}---

# {title}

A base language model. Architecture: {architecture}.{code}
"""

_CODE = """ No stock architecture computes the same: the folder brings
`modeling_competesmoe.py`, which `trust_remote_code=True` loads."""

_COMPETITION = """
Where it was trained with competition routing, competition shaped the router during training only: here an ordinary
router picks the experts.
"""

_TOKENIZER = """The tokenizer gives the ids of training. Megatron's preprocessing puts the end-of-sequence token after
a document and no beginning-of-sequence token in front.
"""
