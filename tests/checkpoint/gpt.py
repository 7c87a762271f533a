"""A tiny GPT model of Megatron's, saved as the trainer saves it; run on ranks of `tests.ranks`."""

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


def tokens() -> torch.Tensor:
    """Token ids [3, 20]."""
    return torch.randint(0, VOCAB, (3, 20), generator=torch.Generator().manual_seed(5))


def save(folder: str, tied: bool = False, per_layer: bool = False) -> torch.Tensor:
    """One rank: a model with random weights into `folder`; its logits [3, 20, PADDED] on `tokens()`."""
    _initialize()
    model = _build(tied=tied, moe_layer_freq=[1] * SIZES["num_layers"] if per_layer else 1)[0]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (parameter.dim() == 1))
    arguments = ARGUMENTS | {"untie_embeddings_and_output_weights": not tied}
    _save_models([model], folder, arguments)
    ids = tokens()
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    with torch.no_grad():
        return model.eval()(ids, torch.arange(ids.shape[1]).expand_as(ids), mask)


def resave(source: str, folder: str, layout: dict[str, int], singleton: bool = False) -> None:
    """Any ranks: load `source` into the parallel layout and save it from there."""
    from megatron.core import dist_checkpointing

    _initialize(**layout)
    stages = layout.get("virtual_pipeline_model_parallel_size", 1)
    models = _build(stages, sequence_parallel=layout.get("tensor_model_parallel_size", 1) > 1, **layout)
    loaded = dist_checkpointing.load({str(i): model.sharded_state_dict() for i, model in enumerate(models)}, source)
    for i, model in enumerate(models):
        model.load_state_dict(loaded[str(i)])
    _save_models(models, folder, ARGUMENTS, singleton)


def _initialize(**layout: int) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    torch.distributed.init_process_group("gloo")
    parallel_state.initialize_model_parallel(**layout)
    model_parallel_cuda_manual_seed(1)


def _build(stages: int = 1, tied: bool = False, **overrides: Any) -> list[Any]:
    """This rank's models, one a virtual stage."""
    import torch.nn.functional as F
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    sizes = {name: value for name, value in SIZES.items() if name in TransformerConfig.__dataclass_fields__}
    config = TransformerConfig(
        **sizes, num_moe_experts=SIZES["num_experts"], add_bias_linear=False, gated_linear_unit=True,
        activation_func=F.silu, bias_activation_fusion=False, normalization="RMSNorm", hidden_dropout=0.0,
        attention_dropout=0.0, use_cpu_initialization=True, gradient_accumulation_fusion=False,
        apply_rope_fusion=False, transformer_impl="local", moe_token_dispatcher_type="alltoall",
        pipeline_dtype=torch.float32, params_dtype=torch.float32, **overrides,
    )  # fmt: skip
    models = []
    for stage in range(stages):
        vp_stage = stage if stages > 1 else None
        models.append(
            GPTModel(
                config,
                get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=vp_stage),
                vocab_size=PADDED,
                max_sequence_length=SIZES["max_position_embeddings"],
                pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
                post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
                position_embedding_type="rope",
                share_embeddings_and_output_weights=tied,
                vp_stage=vp_stage,
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
