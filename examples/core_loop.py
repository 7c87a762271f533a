#!/usr/bin/env python3
"""A competing mixture of experts in a training loop of Megatron-Core alone, without a trainer of Megatron's.

    torchrun --nproc-per-node 2 examples/core_loop.py --steps 20 --save runs/core_loop

It trains a tiny model on sequences that it can learn, with its experts spread over all ranks, on CPUs where there is no
GPU. `--load runs/core_loop` goes on where a run was saved. What competition asks of a loop is marked with (1) to (5).
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_compete.config import CompeteConfig
from megatron_compete.launch import cpu_backend
from megatron_compete.moe.specs import compete_layer_spec
from megatron_compete.trainers import ModelCompetition

VOCABULARY, SEQUENCE, MICROBATCHES = 64, 32, 2

step = 0
"""The step in progress, from 0."""


def main() -> None:
    """Train, and print a line a step."""
    global step
    args = arguments()
    start_ranks()
    config = transformer_config()
    # (1) The settings, and how to ask for the step.
    settings = CompeteConfig(rate=args.rate, max_active_layers=2, router_balance_coeff=0.0)
    competition = ModelCompetition(settings, config, lambda: step)
    # (2) The layers.
    model = build_model(config, compete_layer_spec(config, competition=competition))
    # (3) Once the model is built.
    competition.check_model([model])
    optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=args.lr, min_lr=args.lr), [model])
    first = 0
    if args.load:
        saved = dist_checkpointing.load(sharded_state(model, optimizer, is_loading=True), str(args.load))
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        competition.load_state_dict(saved["competition"])  # (4) Its schedule goes on; another one is refused.
        first = saved["step"]
    batches = sequences(parallel_state.get_data_parallel_rank(), skipped=first * MICROBATCHES)
    for step in range(first, args.steps):
        loss = train_step(model, optimizer, batches)
        scalars = competition.metrics(num_microbatches=MICROBATCHES)  # (5) After each step, on every rank.
        active, agreement = scalars["competition/active-layers"], scalars.get("competition/agreement", float("nan"))
        say(f"step {step + 1}: loss {loss:.6f}, {active:.0f} layers compete, agreement {agreement:.3f}")
    if args.save:
        args.save.mkdir(parents=True, exist_ok=True)
        state = sharded_state(model, optimizer) | {"competition": competition.state_dict(), "step": args.steps}  # (4)
        dist_checkpointing.save(state, str(args.save))
    torch.distributed.destroy_process_group()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps in all")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--rate", type=float, default=0.4, help="fraction of steps at which each layer competes")
    parser.add_argument("--save", type=Path, help="an empty folder for the checkpoint")
    parser.add_argument("--load", type=Path, help="the folder of a checkpoint to go on from")
    return parser.parse_args()


def start_ranks() -> None:
    """torch.distributed and Megatron-Core's groups: experts over all ranks."""
    if cpu_backend.is_needed():
        cpu_backend.activate()
    else:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("gloo" if cpu_backend.is_needed() else "nccl")
    parallel_state.initialize_model_parallel(expert_model_parallel_size=torch.distributed.get_world_size())
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    torch.manual_seed(1)


def transformer_config() -> TransformerConfig:
    """Four layers of eight experts, of which two answer a token."""
    return TransformerConfig(
        num_layers=4, hidden_size=64, num_attention_heads=4, ffn_hidden_size=128, add_bias_linear=False,
        gated_linear_unit=True, activation_func=F.silu, normalization="RMSNorm", attention_dropout=0.0,
        hidden_dropout=0.0, num_moe_experts=8, moe_ffn_hidden_size=64, moe_router_topk=2,
        moe_router_load_balancing_type="aux_loss", moe_aux_loss_coeff=0.01, moe_token_dispatcher_type="alltoall",
        expert_model_parallel_size=torch.distributed.get_world_size(), transformer_impl="local",
        bias_activation_fusion=False, bias_dropout_fusion=False, masked_softmax_fusion=False,
        gradient_accumulation_fusion=False, persist_layer_norm=False,
    )  # fmt: skip


def build_model(config: TransformerConfig, layers: Any) -> DistributedDataParallel:
    """A GPT model of these layers, with Megatron-Core's reduction of gradients around it."""
    model = GPTModel(
        config, layers, vocab_size=VOCABULARY, max_sequence_length=SEQUENCE, position_embedding_type="rope"
    )
    if torch.cuda.is_available():
        model.cuda()
    config.finalize_model_grads_func = finalize_model_grads
    return DistributedDataParallel(config, DistributedDataParallelConfig(), model)


def sharded_state(model: DistributedDataParallel, optimizer: Any, is_loading: bool = False) -> dict[str, Any]:
    """What Megatron-Core saves and loads of both, in whatever layout."""
    state = {"model": model.module.sharded_state_dict()}
    return state | {"optimizer": optimizer.sharded_state_dict(state, is_loading=is_loading)}


def sequences(seed: int, skipped: int) -> Iterator[Tensor]:
    """Microbatches [4, SEQUENCE + 1] of x, 3x + 1, 3(3x + 1) + 1, ... modulo the vocabulary, without the first ones."""
    for index in itertools.count(skipped):
        random = torch.Generator().manual_seed(seed + 1000 * index)
        columns = [torch.randint(VOCABULARY, (4,), generator=random)]
        for _ in range(SEQUENCE):
            columns.append((3 * columns[-1] + 1) % VOCABULARY)
        yield torch.stack(columns, dim=1)


def forward_step(batches: Iterator[Tensor], model: Any) -> tuple[Tensor, Any]:
    """One microbatch: the losses of its tokens, and what makes the loss of them."""
    rows = next(batches).to(next(model.parameters()).device)
    tokens, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    positions = torch.arange(SEQUENCE, device=tokens.device).expand_as(tokens)
    mask = torch.ones(1, 1, SEQUENCE, SEQUENCE, dtype=torch.bool, device=tokens.device).triu(1)
    return model(tokens, positions, mask, labels=labels), mean_loss


def mean_loss(losses: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Megatron-Core's loss function: the loss, and what the loop gets back."""
    loss = losses.float().mean()
    return loss, {"loss": loss.detach()}


def train_step(model: DistributedDataParallel, optimizer: Any, batches: Iterator[Tensor]) -> float:
    """Gradients of all microbatches and a step of the optimizer; the mean loss of this rank."""
    model.zero_grad_buffer()
    optimizer.zero_grad()
    losses = get_forward_backward_func()(
        forward_step_func=forward_step, data_iterator=batches, model=[model], num_microbatches=MICROBATCHES,
        seq_length=SEQUENCE, micro_batch_size=4, forward_only=False,
    )  # fmt: skip
    optimizer.step()
    return sum(float(one["loss"]) for one in losses) / len(losses)


def say(text: str) -> None:
    """Print on rank 0."""
    if torch.distributed.get_rank() == 0:
        print(text, flush=True)


if __name__ == "__main__":
    main()
