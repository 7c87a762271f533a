"""One training job as its recipe describes it: Megatron's own arguments and settings for a given number of GPUs.

The recipe goes through Megatron's parser, `validate_args` and `TransformerConfig`, with a pretended world size and
device (`plan/pretend.py`). No process group is made and none of the files that a recipe names is needed.
"""

import argparse
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.arguments import parse_args, validate_args
from megatron.training.vocab_utils import calculate_padded_vocab_size

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.launch.recipe import MODULE, Recipe
from megatron_compete.layout.rules import BrokenRules, broken_rules
from megatron_compete.layout.scope import check_scope
from megatron_compete.layout.sizes import ParallelSizes
from megatron_compete.moe.baselines import BASELINES, check_baseline
from megatron_compete.moe.baselines.config import BaselineConfig
from megatron_compete.moe.competition import Competition, decoder_stage_chunks, moe_layer_numbers, moe_stage_chunks
from megatron_compete.moe.validation import check_supported
from megatron_compete.plan.pretend import pretended_gpu
from megatron_compete.resilience.resuming.changes import broken_changes
from megatron_compete.resilience.resuming.choice import load_folder
from megatron_compete.resilience.resuming.saved_run import read_saved_run
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.training.arguments import (
    add_arguments,
    check_arguments,
)

GPUS_PER_NODE = 8
"""Where the recipe's `nproc-per-node` does not say."""


@dataclass(frozen=True)
class Job:
    """A job that Megatron would accept."""

    args: argparse.Namespace
    """Megatron's arguments, validated, with `padded_vocab_size`."""

    transformer: TransformerConfig
    compete: CompeteConfig | None
    """None with `--router topk`."""

    sizes: ParallelSizes
    gpus_per_node: int

    @property
    def competes(self) -> bool:
        """Whether any layer ever competes."""
        return self.compete is not None and self.compete.enabled

    @property
    def is_dense(self) -> bool:
        """Whether no layer has experts."""
        return not self.moe_layers

    @property
    def by_utility(self) -> bool:
        """Whether competing layers score in the backward pass, `moe/utility.py`."""
        return self.compete is not None and self.compete.kind == "utility"

    @property
    def microbatches(self) -> int:
        """Microbatches of one pipeline in a step."""
        return int(self.args.global_batch_size // (self.args.micro_batch_size * self.sizes.dp))

    @property
    def tokens(self) -> int:
        """T of the attention on one rank, of one microbatch: its share of the context."""
        return int(self.args.seq_length * self.args.micro_batch_size // self.sizes.cp)

    @property
    def sharded_tokens(self) -> int:
        """Tokens of a microbatch that a rank's norms and MoE layers hold: a share of T under sequence parallelism."""
        return self.tokens // self.sizes.tp if self.transformer.sequence_parallel else self.tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of the global batch."""
        return int(self.args.global_batch_size * self.args.seq_length)

    @property
    def element_bytes(self) -> int:
        """Bytes of a weight or an activation in the training precision (FP8 keeps its weights and residuals in bf16)."""
        return int(self.args.params_dtype.itemsize)

    @property
    def expert_ffn(self) -> int:
        """F, the hidden size of one expert."""
        return int(self.transformer.moe_ffn_hidden_size or self.transformer.ffn_hidden_size)

    @cached_property
    def moe_layers(self) -> frozenset[int]:
        """Numbers of the MoE layers, from 1."""
        return frozenset(moe_layer_numbers(self.transformer)) if self.transformer.num_moe_experts else frozenset()

    @cached_property
    def schedule(self) -> CompetitionSchedule | None:
        """Which layers compete at which step; None where none ever does."""
        if self.compete is None or not self.compete.enabled:
            return None
        return Competition.of_model(self.compete, self.transformer, lambda: 0).schedule

    @cached_property
    def stage_chunks(self) -> tuple[tuple[int, int], ...]:
        """(stage, chunk) of each layer that can compete, in order of depth."""
        return moe_stage_chunks(self.transformer) if self.competes else ()

    @cached_property
    def layers_PV(self) -> list[list[tuple[int, ...]]]:
        """Layer numbers, from 1, of each pipeline stage's model chunks."""
        stage_chunks = decoder_stage_chunks(self.transformer)
        return [
            [
                tuple(number for number, at in enumerate(stage_chunks, 1) if at == (stage, chunk))
                for chunk in range(self.sizes.vp)
            ]
            for stage in range(self.sizes.pp)
        ]


def read_job(recipe: Recipe, gpus: int | None = None) -> Job:
    """The job of a recipe, overrides applied.

    Args:
        gpus: how many; None takes the recipe's nnodes * nproc-per-node.
    Raises:
        BrokenRules: all rules that the job breaks, each with a way out.
        CompeteError: what Megatron or competition refuses, or what this planner cannot count.
    """
    gpus_per_node = _launch_number(recipe, "nproc-per-node", GPUS_PER_NODE)
    world = gpus if gpus is not None else gpus_per_node * _launch_number(recipe, "nnodes", 1)
    with pretended_gpu():
        args = _parse(recipe, world)
        broken = broken_rules(args, gpus_per_node)
        if broken:
            raise BrokenRules(broken)
        job = _validated(args, gpus_per_node)
        changes = _broken_changes(args)
        if changes:
            raise BrokenRules(changes)
        return job


def _broken_changes(args: argparse.Namespace) -> tuple[str, ...]:
    """What keeps the job from going on from the checkpoint in its `--load` folder, if that can be read here."""
    folder = load_folder(args)
    saved = read_saved_run(folder, args.ckpt_step) if folder is not None else None
    return () if saved is None else broken_changes(saved, args)


def _launch_number(recipe: Recipe, name: str, default: int) -> int:
    value = recipe.launch.get(name, default)
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1:
        raise CompeteError(f"--{name} {value} is no number of GPUs to plan for: give --{name} N")
    return number


def _parse(recipe: Recipe, world: int) -> argparse.Namespace:
    """Megatron's parser reads sys.argv."""
    command = recipe.command()
    argv, sys.argv = sys.argv, ["pretrain", *command[command.index(MODULE) + 1 :]]
    try:
        args = parse_args(add_arguments)
    finally:
        sys.argv = argv
    for name in ("yaml_cfg", "use_checkpoint_args"):
        if getattr(args, name):
            raise CompeteError(f"--{name.replace('_', '-')}: a plan needs the arguments themselves in the recipe")
    args.rank, args.world_size = 0, world
    return args


def _validated(args: argparse.Namespace, gpus_per_node: int) -> Job:
    from megatron_compete.training.pretrain import transformer_config

    check_arguments(args)
    try:
        validate_args(args)
        transformer = transformer_config(args)
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, CompeteError):
            raise
        raise CompeteError(f"Megatron refuses these arguments: {error or _where(error)}") from error
    check_scope(args)
    compete = None
    if args.router == "compete":
        compete = CompeteConfig.from_arguments(args)
        check_supported(transformer, compete)
        Competition.of_model(compete, transformer, lambda: 0)
    elif args.router in BASELINES:
        check_baseline(args.router, transformer, BaselineConfig.from_arguments(args))
    args.padded_vocab_size = padded_vocab_size(args)
    return Job(args, transformer, compete, ParallelSizes.of(args), gpus_per_node)


def _where(error: BaseException) -> str:
    """Where an assertion without a message stands in Megatron's source."""
    trace: Any = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"an assertion of {trace.tb_frame.f_code.co_name} in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def padded_vocab_size(args: argparse.Namespace) -> int:
    """The vocabulary as Megatron pads it; read from `--vocab-size`, because a plan opens no tokenizer.

    Raises:
        CompeteError: neither `--vocab-size` nor `--padded-vocab-size` is given.
    """
    if args.padded_vocab_size is not None:
        return int(args.padded_vocab_size)
    if args.vocab_size is None:
        raise CompeteError("the vocabulary's size is not in the recipe: add --vocab-size, as the tokenizer has it")
    return calculate_padded_vocab_size(
        args.vocab_size, args.make_vocab_size_divisible_by, args.tensor_model_parallel_size, logging_enabled=False
    )
