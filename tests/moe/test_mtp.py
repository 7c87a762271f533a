"""Multi-token prediction: its layers restart Megatron's numbering, so they must never take part in the competition."""

from typing import Any

import torch

from megatron_compete.config import CompeteConfig
from tests.moe.layouts import FFN, Layout, initialize, transformer_config
from tests.ranks import run_rank

LAYERS, VOCABULARY, LENGTH = 2, 64, 8


def build() -> Any:
    from argparse import Namespace

    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.training.global_vars import set_args
    from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

    from megatron_compete.moe.competition import Competition
    from megatron_compete.moe.specs import compete_layer_spec

    initialize(Layout())
    model_parallel_cuda_manual_seed(1)
    set_args(Namespace(curr_iteration=0, tensorboard_log_interval=1, log_interval=1))
    every_layer = CompeteConfig(rate=1.0, max_active_layers=LAYERS)
    competition = Competition(every_layer, tuple(range(1, LAYERS + 1)), current_step=lambda: 0)
    transformer = transformer_config(
        Layout(), num_layers=LAYERS, ffn_hidden_size=FFN, transformer_impl="local", mtp_num_layers=1
    )
    config = GPTModelConfig(
        transformer=transformer, vocab_size=VOCABULARY, seq_length=LENGTH, position_embedding_type="rope",
        transformer_layer_spec=lambda *args, **kwargs: compete_layer_spec(*args, **kwargs, competition=competition),
    )  # fmt: skip
    return GPTModelBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups(), True, True)


def competing_layers() -> tuple[list[str], list[str], bool]:
    """Names of the layers that competed in a forward pass, kinds of the MTP block's MoE layers, and whether all learn."""
    from megatron.core.transformer.moe.moe_layer import MoELayer

    from megatron_compete.moe import layer as layer_module

    model = build()
    names = {module: name for name, module in model.named_modules()}
    competed = []
    compete = layer_module.CompeteMoELayer._compete
    layer_module.CompeteMoELayer._compete = lambda self, *a: competed.append(names[self]) or compete(self, *a)
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    model(tokens, torch.arange(LENGTH).expand(2, LENGTH), mask, labels=tokens).mean().backward()
    in_mtp = [
        type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, MoELayer) and "mtp" in name
    ]
    learns = all(torch.isfinite(p.grad).all() and p.grad.any() for n, p in model.named_parameters() if "router" in n)
    return competed, in_mtp, learns


def test_mtp_layers_never_compete() -> None:
    competed, in_mtp, learns = run_rank(competing_layers)
    assert competed == [f"decoder.layers.{number}.mlp" for number in range(LAYERS)]
    assert in_mtp == ["MoELayer"] and learns
