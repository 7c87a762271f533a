"""The README's command for a trainer of one's own: Megatron's flags alone, and its spec flag brings in competing layers."""

import shlex
import sys
from pathlib import Path

import pytest
import torch

from tests.docs.commands import ROOT, commands_of
from tests.moe.layouts import Layout, initialize
from tests.ranks import run_rank

FILES = ["README.md", "docs/tutorials/from-megatron.md"]
SMALL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 8 --max-position-embeddings 8 --num-experts 4 "
    "--moe-router-topk 2 --moe-ffn-hidden-size 16 --micro-batch-size 2 --global-batch-size 2 --train-iters 2 "
    "--expert-model-parallel-size 1 --transformer-impl local --attention-backend auto --no-persist-layer-norm "
    "--no-gradient-accumulation-fusion --vocab-size 64"
)
"""What a CPU takes; all else is as printed."""
FOR_GPUS = ("--bf16", "--use-distributed-optimizer")


def printed(path: Path) -> list[str]:
    """The flags of the command that starts `pretrain_gpt.py`."""
    command = next(shlex.split(command) for command in commands_of(path) if "pretrain_gpt.py" in command)
    return command[command.index("pretrain_gpt.py") + 1 :]


def competing_layers(flags: list[str]) -> int:
    """As Megatron-LM's `pretrain_gpt.py` does it: parse, validate, configuration, model; then a step. Counts the layers."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.global_vars import set_args
    from megatron.training.models.gpt import GPTModelBuilder

    from megatron_compete.moe.layer import CompeteMoELayer

    initialize(Layout())
    model_parallel_cuda_manual_seed(1)
    sys.argv = ["pretrain_gpt.py", *(flag for flag in flags if flag not in FOR_GPUS), *SMALL.split()]
    args = parse_args()
    args.rank, args.world_size = 0, 1
    validate_args(args)
    args.padded_vocab_size, args.curr_iteration = 64, 0
    set_args(args)
    config = gpt_config_from_args(args)
    model = GPTModelBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups(), True, True)
    tokens = torch.randint(64, (2, 8))
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool).triu(1)
    model(tokens, torch.arange(8).expand(2, 8), mask, labels=tokens).mean().backward()
    return sum(isinstance(module, CompeteMoELayer) for module in model.modules())


@pytest.mark.parametrize("name", FILES)
def test_the_printed_flags_make_competing_layers(name: str) -> None:
    assert run_rank(competing_layers, printed(ROOT / name)) == 2


def test_both_pages_print_the_same_command() -> None:
    assert printed(ROOT / FILES[0]) == printed(ROOT / FILES[1])
