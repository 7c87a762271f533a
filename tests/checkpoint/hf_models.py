"""Tiny models of transformers' real classes with random weights, saved as a user would have them."""

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

VOCAB = 250

DECODER: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SIGMOID: dict[str, Any] = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": True,
}  # fmt: skip

LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "rms_norm_eps": 1e-6,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER | {"head_dim": 12},
    "mistral": DECODER | {"head_dim": 12, "sliding_window": None},
    "qwen3_next": DECODER | SPARSE | {
        "num_hidden_layers": 4, "head_dim": 12, "partial_rotary_factor": 0.5, "shared_expert_intermediate_size": 40,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"], "mlp_only_layers": [1], "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10, "linear_conv_kernel_dim": 3,
        "rms_norm_eps": 1e-3,  # the norm of a small answer would multiply rounding by 1 / sqrt(eps)
    },
    "nemotron_h": {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 12, "max_position_embeddings": 64, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2,
        "ssm_state_size": 6, "time_step_min": 1e-30, "n_routed_experts": 8, "num_experts_per_tok": 4, "n_group": 4,
        "topk_group": 2, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 40, "moe_latent_size": 20,
        "routed_scaling_factor": 2.5,
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "moe"],
    },
    "gpt_oss": DECODER | {
        "head_dim": 12, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5, "swiglu_limit": 1.5,
        "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
            "original_max_position_embeddings": 16, "rope_theta": 10000.0,
        },
    },
    "mixtral": DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": DECODER | SPARSE | {"head_dim": 12, "norm_topk_prob": True},
    "qwen2_moe": DECODER | SPARSE | {"shared_expert_intermediate_size": 40, "num_key_value_heads": 4},
    "deepseek_v3": DECODER | SIGMOID | LATENT | {"rope_interleave": True},
    "deepseek_v2": DECODER | LATENT | {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 2,
        "first_k_dense_replace": 1, "routed_scaling_factor": 16.0, "topk_method": "group_limited_greedy", "n_group": 4,
        "topk_group": 2,
    },
    "glm4_moe": DECODER | SIGMOID | {"head_dim": 12, "partial_rotary_factor": 0.5, "use_qk_norm": False},
}  # fmt: skip
DENSE = ("llama", "qwen2", "qwen3", "mistral")
SOFTMAX = ("mixtral", "qwen3_moe", "qwen2_moe")
"""Families whose router competition can teach."""


def save(folder: Path, family: str, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: Any) -> Path:
    """Write a model of `family` with random weights, norms and biases included.

    The score-correction bias stays fp32 as in the hub's checkpoints and in Megatron.
    """
    config = CONFIG_MAPPING[family](**(CONFIGS[family] | changes))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.dim() > 1:
                # The norms of a gated delta net's keys and answers would multiply the rounding of saturated ones.
                value.normal_(std=0.05 if "in_proj_qkvz" in name else 0.3)
            elif name.endswith(("weight", "bias")):
                around_one = "norm" in name and (family != "qwen3_next" or "linear_attn" in name)
                value.normal_(std=0.1).add_(float(around_one))
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.data = module.e_score_correction_bias.data.float()
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def tokens() -> torch.Tensor:
    """Token ids [3, 20]."""
    return torch.randint(0, VOCAB, (3, 20), generator=torch.Generator().manual_seed(5))


def logits(folder: Path) -> torch.Tensor:
    """Logits [3, 20, V] on `tokens()`, in fp32."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        result: torch.Tensor = model.eval()(tokens()).logits
    return result
