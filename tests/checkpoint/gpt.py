"""Tiny GPT models of Megatron's, saved as the trainer saves them; run on ranks of `tests.ranks`."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

VOCAB, PADDED = 250, 256
SIZES: dict[str, Any] = {
    "num_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "kv_channels": 12,
    "ffn_hidden_size": 64,
    "moe_ffn_hidden_size": 24,
    "num_experts": 4,
    "moe_router_topk": 2,
    "max_position_embeddings": 64,
}
"""Head size is not hidden / heads, and three sizes that are easily mixed up differ."""

ARGUMENTS: dict[str, Any] = SIZES | {
    "seq_length": 32,
    "swiglu": True,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-5,
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "untie_embeddings_and_output_weights": True,
    "tokenizer_type": "NullTokenizer",
    "vocab_size": VOCAB,
    "padded_vocab_size": PADDED,
    "consumed_train_samples": 70,
    "compete_rate": 0.07,
}
"""Training arguments of a model that Mixtral can represent, as a checkpoint holds them."""

DENSE: dict[str, Any] = {"num_experts": None, "moe_router_topk": 2, "moe_ffn_hidden_size": None}
SIGMOID: dict[str, Any] = {
    "num_experts": 8,
    "moe_router_topk": 4,
    "moe_layer_freq": [0, 1, 1, 1],
    "moe_shared_expert_intermediate_size": 48,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_num_groups": 4,
    "moe_router_group_topk": 2,
    "moe_router_topk_scaling_factor": 2.5,
}
LATENT: dict[str, Any] = {
    "multi_latent_attention": True,
    "qk_layernorm": True,
    "group_query_attention": False,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_head_dim": 14,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 12,
    "layernorm_epsilon": 1e-6,
}

HYBRID: dict[str, Any] = {
    "hybrid_layer_pattern": "ME*-ME",
    "num_layers": 6,
    "position_embedding_type": "none",
    "swiglu": False,
    "squared_relu": True,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "mamba_num_groups": 2,
    "mamba_state_dim": 6,
    "moe_shared_expert_intermediate_size": 40,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_topk_scaling_factor": 2.5,
    "moe_router_dtype": "fp32",
}

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {},
    "qwen3_moe": {"qk_layernorm": True, "moe_layer_freq": [1, 0, 1, 1]},
    "qwen2_moe": {
        "kv_channels": 8,
        "add_qkv_bias": True,
        "moe_shared_expert_intermediate_size": 40,
        "moe_shared_expert_gate": True,
        "moe_router_pre_softmax": True,
    },
    "deepseek_v3": SIGMOID | LATENT,
    "deepseek_v2": LATENT
    | {
        "num_experts": 8,
        "moe_router_topk": 2,
        "moe_layer_freq": [0, 1, 1, 1],
        "moe_shared_expert_intermediate_size": 48,
        "moe_router_pre_softmax": True,
        "moe_router_topk_scaling_factor": 6.0,
        "moe_router_num_groups": 4,
        "moe_router_group_topk": 2,
    },
    "glm4_moe": SIGMOID | {"add_qkv_bias": True, "qk_layernorm": True, "rotary_percent": 0.5},
    "qwen3_next": {
        "layernorm_zero_centered_gamma": True,
        "qk_layernorm": True,
        "attention_output_gate": True,
        "rotary_percent": 0.5,
        "experimental_attention_variant": "gated_delta_net",
        "linear_attention_freq": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 10,
        "linear_conv_kernel_dim": 3,
        "layernorm_epsilon": 1e-3,
        "moe_shared_expert_intermediate_size": 40,
        "moe_shared_expert_gate": True,
    },
    "gpt_oss": {
        "add_bias_linear": True,
        "swiglu": False,
        "quick_geglu": True,
        "glu_linear_offset": 1.0,
        "activation_func_clamp_value": 1.5,
        "softmax_type": "learnable",
        "window_size": (4, 0),
        "window_attn_skip_freq": 2,
        "position_embedding_type": "yarn",
        "rotary_scaling_factor": 4.0,
        "yarn_original_max_position_embeddings": 16,
        "yarn_correction_range_round_to_int": False,
    },
    "llama": DENSE,
    "mistral": DENSE,
    "qwen3": DENSE | {"qk_layernorm": True, "untie_embeddings_and_output_weights": False},
    "qwen2": DENSE | {"add_qkv_bias": True, "kv_channels": 8},
    "competesmoe": {"normalization": "LayerNorm", "swiglu": False, "relu": True, "rotary_percent": 0.5},
}
"""What each family's model has beside or instead of `ARGUMENTS`; the last is the authors' recipe."""

NAMED = ("mistral",)
"""Families that an export takes where they are named; another one comes first."""


def named(family: str) -> str | None:
    """What --family has to say for the family to be taken."""
    return family if family in NAMED else None


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe of all probabilities": ("qwen3_moe", {"qk_layernorm": True, "moe_router_pre_softmax": True}),
    "qwen2_moe without bias": (
        "qwen2_moe",
        {"kv_channels": 8, "moe_shared_expert_intermediate_size": 24, "moe_shared_expert_gate": True, "moe_layer_freq": 2},
    ),
    "deepseek_v3 with YaRN": (
        "deepseek_v3",
        SIGMOID
        | LATENT
        | {"rope_type": "yarn", "rotary_scaling_factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9}
        | {"moe_router_num_groups": None, "moe_router_group_topk": None},
    ),
    "deepseek_v3 with a stretched rotation alone": (
        "deepseek_v3",
        SIGMOID | LATENT | {"rope_type": "yarn", "rotary_scaling_factor": 4.0, "moe_router_enable_expert_bias": False},
    ),
    "deepseek_v3 as Kimi-K2": (
        "deepseek_v3",
        SIGMOID | LATENT | {"moe_router_num_groups": 1, "moe_router_group_topk": 1}
        | {"rope_type": "yarn", "rotary_scaling_factor": 8.0, "mscale": 1.0, "mscale_all_dim": 1.0}
        | {"yarn_beta_fast": 1.0, "yarn_original_max_position_embeddings": 16},
    ),
    "deepseek_v2 with YaRN": (
        "deepseek_v2",
        LATENT | {"moe_router_pre_softmax": True, "moe_shared_expert_intermediate_size": 48}
        | {"moe_router_topk": 3, "rope_type": "yarn", "rotary_scaling_factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.7},
    ),
    "deepseek_v3 with multi-token prediction": ("deepseek_v3", SIGMOID | LATENT | {"mtp_num_layers": 2}),
    "glm4_moe with multi-token prediction": (
        "glm4_moe", SIGMOID | {"mtp_num_layers": 1, "add_qkv_bias": True, "moe_layer_freq": 1}
    ),
    "qwen3_next with dense layers and all probabilities": (
        "qwen3_next",
        {"layernorm_zero_centered_gamma": True, "qk_layernorm": True, "attention_output_gate": True, "moe_layer_freq": 2}
        | {"experimental_attention_variant": "gated_delta_net", "linear_attention_freq": [0, 1, 0, 1]}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 6, "linear_value_head_dim": 10}
        | {"moe_shared_expert_intermediate_size": 24, "moe_shared_expert_gate": True, "moe_router_pre_softmax": True}
        | {"layernorm_epsilon": 1e-3},
    ),
    "nemotron_h": ("nemotron_h", HYBRID),
    "nemotron_h of a latent mixture and groups": (
        "nemotron_h",
        HYBRID
        | {"num_experts": 8, "moe_router_topk": 4, "moe_router_num_groups": 4, "moe_router_group_topk": 2}
        | {"moe_latent_size": 20, "moe_router_enable_expert_bias": False},
    ),
    "nemotron_h without a mixture": (
        "nemotron_h", HYBRID | {"hybrid_layer_pattern": "M*-", "num_layers": 3, "num_experts": None, "moe_ffn_hidden_size": None}
    ),
    "glm4_moe without bias": ("glm4_moe", SIGMOID | {"moe_router_enable_expert_bias": False, "moe_router_topk_scaling_factor": None}),
    "gpt_oss with plain positions and no window": (
        "gpt_oss",
        {"add_bias_linear": True, "swiglu": False, "quick_geglu": True, "glu_linear_offset": 1.0, "softmax_type": "learnable"}
        | {"activation_func_clamp_value": 7.0},
    ),
    "llama with scaled frequencies": ("llama", DENSE | {"use_rope_scaling": True, "rope_scaling_factor": 4.0, "rotary_base": 500000}),
    "competesmoe with everything else": (
        "competesmoe",
        SIGMOID
        | {
            "add_qkv_bias": True,
            "qk_layernorm": True,
            "squared_relu": True,
            "swiglu": False,
            "moe_layer_freq": [1, 0, 0, 1],
            "moe_router_num_groups": 2,
            "moe_router_group_topk": 1,
            "moe_shared_expert_intermediate_size": 20,
            "moe_shared_expert_gate": True,
            "moe_router_dtype": "fp32",
        },
    ),
    "competesmoe of all probabilities": (
        "competesmoe",
        {"moe_router_pre_softmax": True, "moe_router_topk_scaling_factor": 1.5, "swiglu": False, "normalization": "LayerNorm"}
        | {"qk_layernorm": True, "untie_embeddings_and_output_weights": False},
    ),
    "competesmoe of one expert and other scores": (
        "competesmoe",
        {"moe_router_score_function": "sqrtsoftplus", "moe_router_enable_expert_bias": True, "moe_router_topk": 1}
        | {"num_experts": 6, "moe_layer_freq": 3, "swiglu": False, "relu": True},
    ),
    "competesmoe of experts in a latent space": (
        "competesmoe",
        {"moe_latent_size": 20, "moe_shared_expert_intermediate_size": 24, "moe_router_dtype": "fp32", "qk_layernorm": True},
    ),
    "competesmoe of groups that logits rank": (
        "competesmoe",
        {"num_experts": 8, "moe_router_topk": 4, "moe_router_num_groups": 4, "moe_router_group_topk": 2},
    ),
    "competesmoe dense": ("competesmoe", DENSE | {"relu": True, "swiglu": False}),
}  # fmt: skip
"""Other models of a family: its name, and what they have beside or instead of `ARGUMENTS`."""


def tokens() -> torch.Tensor:
    """Token ids [4, 20]: four documents."""
    return torch.randint(0, VOCAB, (4, 20), generator=torch.Generator().manual_seed(5))


def save(folder: str, tied: bool = False, per_layer: bool = False) -> torch.Tensor:
    """One rank: a Mixtral with random weights into `folder`; its logits [4, 20, PADDED] on `tokens()`."""
    _initialize()
    changes: dict[str, Any] = {"moe_layer_freq": [1] * SIZES["num_layers"]} if per_layer else {}
    return _save_random(ARGUMENTS | {"untie_embeddings_and_output_weights": not tied} | changes, folder)


def save_all(folder: str, models: dict[str, dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One rank: a model with random weights for each of `models`, into folders of their names; their logits."""
    _initialize()
    return {name: _save_random(ARGUMENTS | changes, f"{folder}/{name}") for name, changes in models.items()}


def resave(source: str, folder: str, layout: dict[str, int], singleton: bool = False) -> None:
    """Any ranks: load the Mixtral of `source` into the parallel layout and save it from there."""
    _initialize(**layout)
    _resave(source, folder, ARGUMENTS, layout, singleton)


def resave_all(source: str, folder: str, models: dict[str, dict[str, Any]], layout: dict[str, int]) -> None:
    """Any ranks: load what `save_all` wrote to `source` into the parallel layout and save it from there."""
    _initialize(**layout)
    for name, changes in models.items():
        _resave(f"{source}/{name}/iter_0000007", f"{folder}/{name}", ARGUMENTS | changes, layout)


def _save_random(arguments: dict[str, Any], folder: str) -> torch.Tensor:
    model = _build(arguments, {})[0].eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.05 if ".in_proj." in name else 0.3))
            elif tensor.is_floating_point():
                around_zero = name.endswith("bias") or (
                    "norm" in name and bool(arguments.get("layernorm_zero_centered_gamma"))
                )
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1 + (not around_zero))
    _save_models([model], folder, arguments)
    ids = tokens()
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    with torch.no_grad():
        return model(ids, torch.arange(ids.shape[1]).expand_as(ids), mask)


def _resave(
    source: str, folder: str, arguments: dict[str, Any], layout: dict[str, int], singleton: bool = False
) -> None:
    from megatron.core import dist_checkpointing

    models = _build(arguments, layout)
    loaded = dist_checkpointing.load({str(i): model.sharded_state_dict() for i, model in enumerate(models)}, source)
    for i, model in enumerate(models):
        model.load_state_dict(loaded[str(i)])
    _save_models(models, folder, arguments, singleton)


def _initialize(**layout: int) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(**layout)
    model_parallel_cuda_manual_seed(1)


def _build_hybrid(arguments: dict[str, Any], layout: dict[str, int]) -> Any:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_compete.training.model import stock_config

    config = stock_config(_parsed(arguments | {"padded_vocab_size": PADDED}, layout))
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return config.get_builder_cls()(config).build_model(groups, pre_process=True, post_process=True)


def _config(arguments: dict[str, Any], layout: dict[str, int]) -> Any:
    """The transformer's configuration, from arguments by Megatron's own reading of them."""
    from megatron_compete.training.model import transformer_config

    return transformer_config(_parsed(arguments, layout))


def _parsed(arguments: dict[str, Any], layout: dict[str, int]) -> Any:
    """Arguments with all of Megatron's defaults."""
    import sys

    from megatron.training.arguments import parse_args

    from megatron_compete.training.arguments import add_arguments

    sys.argv = sys.argv[:1]
    args = parse_args(add_arguments)
    fixed = {
        "params_dtype": torch.float32,
        "pipeline_dtype": torch.float32,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    given = {
        "moe_token_dispatcher_type": "alltoall",
        "sequence_parallel": layout.get("tensor_model_parallel_size", 1) > 1,
    }
    for name, value in {**arguments, **layout, **fixed, **given}.items():
        setattr(args, name, value)
    return args


def _build(arguments: dict[str, Any], layout: dict[str, int]) -> list[Any]:
    """This rank's models, one a virtual stage."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.experimental_attention_variant_module_specs import (
        get_transformer_block_with_experimental_attention_variant_spec,
    )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec

    if arguments.get("hybrid_layer_pattern"):
        return [_build_hybrid(arguments, layout)]
    config = _config(arguments, layout)
    stages = layout.get("virtual_pipeline_model_parallel_size") or 1
    models = []
    for stage in range(stages):
        vp_stage = stage if stages > 1 else None
        spec = (
            get_transformer_block_with_experimental_attention_variant_spec(config, vp_stage=vp_stage)
            if config.experimental_attention_variant
            else get_gpt_decoder_block_spec(
                config, use_transformer_engine=False, normalization=config.normalization, vp_stage=vp_stage
            )
        )
        mtp = None
        if config.mtp_num_layers:
            mtp = get_gpt_mtp_block_spec(config, spec, use_transformer_engine=False, vp_stage=vp_stage)
        models.append(
            GPTModel(
                config,
                spec,
                vocab_size=PADDED,
                max_sequence_length=SIZES["max_position_embeddings"],
                pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
                post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
                position_embedding_type=arguments["position_embedding_type"],
                rotary_percent=arguments.get("rotary_percent", 1.0),
                rotary_base=arguments["rotary_base"],
                rope_scaling=arguments.get("use_rope_scaling", False),
                rope_scaling_factor=arguments.get("rope_scaling_factor", 8.0),
                share_embeddings_and_output_weights=not arguments["untie_embeddings_and_output_weights"],
                vp_stage=vp_stage,
                mtp_block_spec=mtp,
            )
        )
    return models


def _save_models(models: list[Any], folder: str, arguments: dict[str, Any], singleton: bool = False) -> None:
    """As `megatron.training.checkpointing.save_checkpoint` does, with values of its kind among the arguments."""
    import signal

    from megatron.core import dist_checkpointing
    from megatron.core.transformer.enums import AttnBackend

    iteration = Path(folder, "iter_0000007")
    iteration.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    metadata = {"singleton_local_shards": singleton}
    values = {"attention_backend": AttnBackend.auto, "exit_signal": signal.SIGTERM, "params_dtype": torch.float32}
    state: dict[str, Any] = {"args": Namespace(**arguments, **values), "checkpoint_version": 3.0, "iteration": 7}
    for number, model in enumerate(models):
        state[f"model{number}" if len(models) > 1 else "model"] = model.sharded_state_dict(metadata=metadata)
    dist_checkpointing.save(state, str(iteration), async_strategy="mcore")
    Path(folder, "latest_checkpointed_iteration.txt").write_text("7")
