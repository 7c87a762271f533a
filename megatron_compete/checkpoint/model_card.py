"""The README.md of an exported model: what it is, how it was trained, how to load it."""

from collections.abc import Mapping
from typing import Any

COMPETE_PREFIX = "compete_"

SECTIONS: dict[str, tuple[str, ...]] = {
    "Model": (
        "num_layers", "hidden_size", "num_attention_heads", "group_query_attention", "num_query_groups", "kv_channels", "num_experts",
        "moe_router_topk", "moe_ffn_hidden_size", "seq_length", "max_position_embeddings", "rotary_base",
    ),
    "Training": (
        "train_iters", "train_samples", "consumed_train_samples", "global_batch_size", "micro_batch_size", "optimizer",
        "lr", "min_lr", "lr_decay_style", "lr_warmup_iters", "weight_decay", "clip_grad", "adam_beta1", "adam_beta2",
        "init_method_std", "hidden_dropout", "attention_dropout", "bf16", "fp16", "fp8", "seed",
    ),
    "Routing": (
        "router", "moe_router_load_balancing_type", "moe_aux_loss_coeff", "moe_z_loss_coeff", "moe_input_jitter_eps",
        "moe_router_dtype",
    ),
}  # fmt: skip
"""Arguments that the card lists, where the checkpoint has them."""


def model_card(arguments: Mapping[str, Any], iteration: int, has_tokenizer: bool) -> str:
    """Text of the README.md."""
    samples = arguments.get("consumed_train_samples") or 0
    tokens = int(samples) * int(arguments.get("seq_length") or 0)
    seen = f" ({tokens:,} tokens)" if tokens else ""
    parts = [
        _HEAD.format(experts=arguments["num_experts"], topk=arguments.get("moe_router_topk", 2)),
        f"Exported by megatron-compete from a Megatron-Core checkpoint after {iteration:,} iterations{seen}.\n",
        _USE if has_tokenizer else _USE_WITHOUT_TOKENIZER,
    ]
    given = {name: value for name, value in arguments.items() if value is not None and value is not False}
    for title, names in SECTIONS.items():
        parts.append(_table(title, {name: given[name] for name in names if name in given}))
    compete = {name: value for name, value in sorted(arguments.items()) if name.startswith(COMPETE_PREFIX)}
    parts.append(_table("Competition", compete))
    return "\n".join(part for part in parts if part)


def _table(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = [
        f"| `--{name.replace('_', '-')}` | {str(value).replace('|', chr(92) + '|')} |" for name, value in values.items()
    ]
    return "\n".join([f"## {title}\n", "| argument | value |", "|---|---|", *rows, ""])


_HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- mixtral
- mixture-of-experts
---

# A mixture of {experts} experts, {topk} a token

A base language model of the Mixtral architecture. Where it was trained with competition routing, competition shaped
the router during training only: here an ordinary softmax router picks the experts.
"""

_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

The tokenizer gives the ids of training, with nothing in front and nothing behind. Megatron's preprocessing puts the
end-of-sequence token after a document and no beginning-of-sequence token in front.
"""

_USE_WITHOUT_TOKENIZER = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

The folder holds no tokenizer.
"""
