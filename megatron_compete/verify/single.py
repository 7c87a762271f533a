"""A checkpoint's model in one process, whatever layout wrote it: for checks and small evaluations, not for training."""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.arguments import parse_args, validate_args
from megatron.training.global_vars import set_global_variables
from megatron.training.initialize import initialize_megatron

from megatron_compete.checkpoint.reader import TorchDistCheckpoint
from megatron_compete.common.errors import CompeteError
from megatron_compete.launch import cpu_backend as cpu
from megatron_compete.training.arguments import add_arguments
from megatron_compete.training.dataset_helpers import use_prebuilt_helpers
from megatron_compete.training.model import model_config

ONE_PROCESS = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "num_layers_per_virtual_pipeline_stage": None,
    "num_virtual_stages_per_pipeline_rank": None,
    "pipeline_model_parallel_layout": None,
    "decoder_first_pipeline_num_layers": None,
    "decoder_last_pipeline_num_layers": None,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": None,
    "context_parallel_size": 1,
    "sequence_parallel": False,
    "use_distributed_optimizer": False,
    "overlap_grad_reduce": False,
    "overlap_param_gather": False,
    "bf16": False,
    "fp16": False,
    "global_batch_size": 1,
    "micro_batch_size": 1,
    "rampup_batch_size": None,
    "data_parallel_size": 1,
    "world_size": 1,
    "rank": 0,
    "local_rank": 0,
    "params_dtype": torch.float32,
    "tensorboard_dir": None,
    "save": None,
    "load": None,
    "mock_data": True,
}
"""Arguments that one process in fp32 sets anew; all others are the checkpoint's, which were validated when it ran."""

IMPORTS = ("spec", "yaml_cfg", "fp8_quantizer_factory", "fp4_quantizer_factory")
"""Arguments that name code for Megatron to import: it is run on a user's word, not on a checkpoint's."""


def load_model(
    checkpoint: TorchDistCheckpoint, tokenizer_model: str | None = None, trust_remote_code: bool = False
) -> tuple[GPTModel, GPTModel]:
    """The model as initialised, and with the checkpoint's weights; fp32, in evaluation mode.

    Initialises torch.distributed and Megatron with one rank in this process. Runs no code that the checkpoint names or
    holds: of its arguments those that do are refused, of its states only tensors are read.

    Args:
        trust_remote_code: the user's word that a tokenizer may run code of its own; the checkpoint's does not count.
    Raises:
        CompeteError: another model's weights, a model that cannot run on this host, or arguments that would run code.
    """
    refuse_code(checkpoint.arguments, str(checkpoint.folder), trust_remote_code)
    args = _arguments(checkpoint.arguments, tokenizer_model)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    use_prebuilt_helpers()
    set_global_variables(args)
    initialize_megatron(allow_no_cuda=cpu.is_active())
    fresh, trained = (_build(args) for _ in range(2))
    _load(trained, str(checkpoint.folder))
    return fresh, trained


def refuse_code(saved: Mapping[str, Any], folder: str, trust_remote_code: bool) -> None:
    """Raise a `CompeteError` where a checkpoint's arguments would have code imported that the user has not vouched for."""
    if saved.get("trust_remote_code") and not trust_remote_code:
        raise CompeteError(
            f"{folder}: trained with --trust-remote-code: the code of its tokenizer, {saved.get('tokenizer_model')}, is "
            "not run on a checkpoint's word; give --trust-remote-code if you trust it"
        )
    for name in IMPORTS:
        if saved.get(name):
            raise CompeteError(
                f"{folder}: trained with --{name.replace('_', '-')} {saved[name]}, code that is not imported on a "
                "checkpoint's word; its files can be verified without --text"
            )


def _load(model: GPTModel, folder: str) -> None:
    # Objects (Transformer Engine's scales) would be unpickled by torch as they are.
    wanted = {key: value for key, value in model.sharded_state_dict().items() if not isinstance(value, ShardedObject)}
    loaded = dist_checkpointing.load(wanted, folder)  # with the common state (arguments, counters) beside the weights
    weights = {key: loaded[key] for key in wanted if key in loaded}
    keys = model.load_state_dict(weights, strict=False)
    missing = [key for key in keys.missing_keys if not key.endswith("_extra_state")]  # Transformer Engine's scales
    if missing:
        raise CompeteError(f"{folder} is of another model: it lacks {', '.join(missing[:3])}")


def _arguments(saved: dict[str, Any], tokenizer_model: str | None) -> argparse.Namespace:
    """The checkpoint's arguments over this version's defaults, for one process."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        args = parse_args(add_arguments)
    finally:
        sys.argv = argv
    hardware = cpu.ARGUMENTS if cpu.is_active() else {}
    for name, value in {**saved, **ONE_PROCESS, **hardware}.items():
        setattr(args, name, value)
    args.tokenizer_model = tokenizer_model or args.tokenizer_model
    if "world_size" not in saved:
        _complete(args)
    return args


def _complete(args: argparse.Namespace) -> None:
    """Derive what Megatron derives when a run starts: an imported checkpoint holds the model's arguments alone."""
    args.router = "topk"  # at inference a competing layer is Megatron's own, and not every import can compete
    args.padded_vocab_size = args.padded_vocab_size or args.vocab_size
    validate_args(args)


def _build(args: argparse.Namespace) -> GPTModel:
    config = model_config(args)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    return config.get_builder_cls()(config).build_model(groups, pre_process=True, post_process=True).eval()


@torch.no_grad()
def logits(model: GPTModel, tokens: torch.Tensor) -> torch.Tensor:
    """Next-token logits [B, S, padded vocabulary] for token ids [B, S], under a causal mask."""
    batch, length = tokens.shape
    positions = torch.arange(length).expand(batch, length)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    return model(tokens, positions, mask)
