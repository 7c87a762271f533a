"""Jobs of Megatron-Bridge's real trainer on CPU ranks."""

import functools
from typing import Any
from unittest import mock

from megatron_compete.bridge import compete
from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig

VOCABULARY, SEQUENCE = 128, 16
HYBRID = "hybrid"
"""In the place of a Hugging Face folder: `hybrid_provider`."""


def make_hf(folder: str) -> None:
    """A small Qwen3-MoE in Hugging Face's format, with random weights."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, moe_intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=8, num_experts_per_tok=2,
        norm_topk_prob=True, tie_word_embeddings=False, max_position_embeddings=64, dtype="float32",
    )  # fmt: skip
    Qwen3MoeForCausalLM(config).save_pretrained(folder)


def recipe(hf: str, folder: str, model: dict[str, Any], steps: int = 20) -> Any:
    """A recipe as Bridge's own, for a host without CUDA."""
    import torch
    from megatron.bridge import AutoBridge
    from megatron.bridge.models.gpt_provider import local_layer_spec
    from megatron.bridge.recipes.common import _pretrain_common

    config = _pretrain_common()
    gpt: dict[str, Any] = {"transformer_layer_spec": local_layer_spec}
    if hf == HYBRID:
        config.model, gpt = hybrid_provider(), {}
    else:
        config.model = AutoBridge.from_hf_pretrained(hf).to_megatron_provider(load_weights=False)
    settings = dict(
        transformer_impl="local", seq_length=SEQUENCE, bf16=False,
        params_dtype=torch.float32, pipeline_dtype=torch.float32, autocast_dtype=torch.float32,
        use_cpu_initialization=True, moe_permute_fusion=False, moe_grouped_gemm=False, masked_softmax_fusion=False,
        bias_activation_fusion=False, bias_dropout_fusion=False, apply_rope_fusion=False, persist_layer_norm=False,
        gradient_accumulation_fusion=False, cross_entropy_loss_fusion=False, moe_token_dispatcher_type="alltoall",
        attention_backend="unfused", moe_router_fusion=False,
    ) | gpt | model  # fmt: skip
    for name, value in settings.items():
        assert hasattr(config.model, name), name
        setattr(config.model, name, value)
    config.mixed_precision = None
    config.tokenizer.tokenizer_type = "NullTokenizer"
    config.tokenizer.vocab_size = VOCABULARY - 1
    config.dataset.seq_length = SEQUENCE
    config.dataset.num_workers = 0
    config.dataset.path_to_cache = f"{folder}/cache"
    config.train.train_iters = steps
    config.train.global_batch_size, config.train.micro_batch_size = 4, 1
    config.validation.eval_iters, config.validation.eval_interval = 0, steps
    config.scheduler.lr_warmup_iters, config.scheduler.lr_decay_iters = 0, 20
    config.optimizer.lr, config.optimizer.min_lr = 1e-3, 1e-4
    config.optimizer.bf16 = False
    # Megatron's distributed optimizer loads what it saved with Transformer Engine's Adam alone.
    config.optimizer.use_distributed_optimizer = config.ddp.use_distributed_optimizer = False
    config.ddp.overlap_param_gather = config.ddp.overlap_grad_reduce = False
    config.ddp.grad_reduce_in_fp32 = False
    config.dist.distributed_backend = "gloo"
    config.dist.use_gloo_process_groups = True
    config.logger.tensorboard_dir = f"{folder}/tensorboard"
    config.logger.log_interval = config.logger.tensorboard_log_interval = 1
    config.checkpoint.save = f"{folder}/checkpoints"
    config.checkpoint.load = f"{folder}/checkpoints"
    config.checkpoint.save_interval = 10
    return config


def hybrid_provider() -> Any:
    """Attention, experts and dense layers, which need no Mamba kernels; only the first of two stages has experts."""
    from megatron.bridge.models.hybrid.hybrid_provider import HybridModelProvider

    from megatron_compete.launch.cpu_modules import LOCAL_HYBRID

    return HybridModelProvider(
        hybrid_layer_pattern="*E*E|*-*-", hidden_size=32, num_attention_heads=4, num_moe_experts=4, moe_router_topk=2,
        moe_ffn_hidden_size=24, ffn_hidden_size=24, vocab_size=VOCABULARY, moe_aux_loss_coeff=0.01,
        moe_router_load_balancing_type="aux_loss", hybrid_stack_spec=LOCAL_HYBRID,
    )  # fmt: skip


def run(config: Any) -> None:
    """Bridge's `pretrain`."""
    from megatron.bridge.training import initialize, setup
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    # It asserts that there is CUDA unless its caller says otherwise, and compiles what Megatron-Core's wheel has compiled.
    without_cuda = functools.partial(setup.initialize_megatron, allow_no_cuda=True)
    with (
        mock.patch.object(setup, "initialize_megatron", without_cuda),
        mock.patch.object(initialize, "compile_helpers"),
    ):
        pretrain(config, forward_step)


def train(
    hf: str,
    folder: str,
    model: dict[str, Any],
    settings: CompeteConfig | None,
    steps: int = 20,
    checkpoint: dict[str, Any] | None = None,
    logs: str = "tensorboard",
    override_schedule: bool = False,
) -> str:
    """Train in `folder`, without competition where `settings` is None; what was refused, or empty.

    Args:
        model, checkpoint: settings of the recipe's model and of its checkpoints.
        logs: TensorBoard's folder in `folder`.
    """
    from tests.bridge.environment import load_bridge

    load_bridge()
    config = recipe(hf, folder, model, steps)
    config.logger.tensorboard_dir = f"{folder}/{logs}"
    for name, value in (checkpoint or {}).items():
        assert hasattr(config.checkpoint, name), name
        setattr(config.checkpoint, name, value)
    if settings is not None:
        compete(config, settings, override_schedule=override_schedule)
    try:
        run(config)
    except CompeteError as error:
        return str(error)
    return ""


def export(hf: str, checkpoints: str, exported: str) -> Any:
    """Bridge's own export of a checkpoint, and the logits of the model that Bridge loads from it."""
    import torch

    from tests.bridge.environment import load_bridge

    load_bridge()
    from megatron.bridge import AutoBridge
    from megatron.bridge.training.model_load_save import temporary_distributed_context
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    bridge = AutoBridge.from_hf_pretrained(hf)
    bridge.export_ckpt(checkpoints, exported, show_progress=False)
    with temporary_distributed_context(backend="gloo"):
        (model,) = bridge.load_megatron_model(checkpoints, wrap_with_ddp=False)
        model_parallel_cuda_manual_seed(1)
        tokens = some_tokens()
        positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
        mask = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        with torch.no_grad():
            return model.eval()(tokens, positions, mask).float()


def some_tokens() -> Any:
    """Token ids [2, 16]."""
    import torch

    return torch.arange(2 * SEQUENCE).reshape(2, SEQUENCE) * 7 % VOCABULARY
