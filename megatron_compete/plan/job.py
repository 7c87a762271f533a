"""One training job as its recipe describes it: Megatron's own arguments and settings for a given number of GPUs.

The recipe goes through Megatron's parser, `validate_args` and `TransformerConfig`, with a pretended world size and
device (`plan/pretend.py`). No process group is made and none of the files that a recipe names is needed.
"""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.training.arguments import parse_args, validate_args
from megatron.training.vocab_utils import calculate_padded_vocab_size

from megatron_compete.common.errors import CompeteError
from megatron_compete.config import CompeteConfig
from megatron_compete.launch.recipe import MODULE, Recipe
from megatron_compete.layout.rules import BrokenRules
from megatron_compete.layout.scope import check_scope
from megatron_compete.layout.sizes import ParallelSizes
from megatron_compete.moe.competition import moe_stage_chunks
from megatron_compete.plan.layers import Layers
from megatron_compete.plan.pretend import pretended_gpu
from megatron_compete.plan.transformer_engine import NeededVersion, needed_version
from megatron_compete.resilience.resuming.changes import broken_changes
from megatron_compete.resilience.resuming.choice import load_folder
from megatron_compete.resilience.resuming.saved_run import read_saved_run
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.training.arguments import add_arguments
from megatron_compete.training.job_check import CheckedJob, check_job

ASSUMED_VOCABULARY = 128_000
"""Where neither `--vocab-size` nor `--padded-vocab-size` says, for a plan opens no tokenizer. That of recent models is
between 32,000 and 202,000, and at most a few per cent of their parameters hang on it."""

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
    schedule: CompetitionSchedule | None = None
    """Which layers compete at which step; None where none ever does."""
    assumed: tuple[str, ...] = ()
    """What the recipe does not say and the plan takes for granted."""
    transformer_engine: NeededVersion | None = None
    """The Transformer Engine that the arguments need; None where they use none."""

    @property
    def competes(self) -> bool:
        """Whether any layer ever competes."""
        return self.compete is not None and self.compete.enabled

    @property
    def is_dense(self) -> bool:
        """Whether no layer has experts."""
        return not any(kind.is_moe for kind in self.layers.kinds)

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
    def competing_tokens(self) -> int:
        """Of these, those that compete where a layer does (`--compete-token-fraction`): their mean, rounded up."""
        return math.ceil((self.compete.token_fraction if self.compete else 1.0) * self.sharded_tokens - 1e-9)

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

    @property
    def expert_width(self) -> int:
        """Width of what experts get and give: the hidden size, or the latent's (`--moe-latent-size`)."""
        return int(self.transformer.moe_latent_size or self.transformer.hidden_size)

    @cached_property
    def layers(self) -> Layers:
        """The model's layers in their pipeline layout."""
        return Layers.of(self.args, self.transformer)

    @cached_property
    def stage_chunks(self) -> tuple[tuple[int, int], ...]:
        """(stage, chunk) of each layer that can compete, in order of depth."""
        return moe_stage_chunks(self.transformer, self.args.hybrid_layer_pattern) if self.competes else ()


def read_job(recipe: Recipe, gpus: int | None = None) -> Job:
    """The job of a recipe, overrides applied.

    Args:
        gpus: how many; None takes the recipe's nnodes * nproc-per-node.
    Raises:
        BrokenRules: all rules that the job breaks, each with a way out.
        CompeteError: what Megatron or competition refuses, or what this planner cannot count.
    """
    checked = check_recipe(recipe, gpus)
    check_scope(checked.job.args)
    return _priced(checked)


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe that would train, and what had to be assumed of it."""

    job: CheckedJob
    gpus_per_node: int
    assumed: tuple[str, ...]


def check_recipe(
    recipe: Recipe, gpus: int | None = None, validated: Callable[[argparse.Namespace], None] = lambda args: None
) -> CheckedRecipe:
    """What the trainer checks before it builds a model, for a recipe and on any host.

    Args:
        gpus: see `read_job`.
        validated: is given the arguments once Megatron has validated them, before competition is asked.
    Raises:
        BrokenRules, CompeteError: see `read_job`.
    """
    gpus_per_node = _launch_number(recipe, "nproc-per-node", GPUS_PER_NODE)
    world = gpus if gpus is not None else gpus_per_node * _launch_number(recipe, "nnodes", 1)
    with pretended_gpu():
        args = _parse(recipe, world)
        assumed = _assume(args)
        checked = check_job(args, gpus_per_node, lambda parsed: _validated(parsed, validated))
        changes = _broken_changes(checked.args)
        if changes:
            raise BrokenRules(changes)
    return CheckedRecipe(checked, gpus_per_node, assumed)


def not_checked(recipe: Recipe) -> str | None:
    """Why a recipe cannot be checked before it runs, or None: its arguments are elsewhere."""
    for name in ("use-checkpoint-args", "yaml-cfg"):
        if recipe.arguments.get(name):
            return f"--{name}: the arguments are the {'checkpoint' if 'checkpoint' in name else 'file'}'s"
    return None


def _assume(args: argparse.Namespace) -> tuple[str, ...]:
    """Fill in what only files could tell, and say so."""
    if args.padded_vocab_size is not None or args.vocab_size is not None:
        return ()
    args.vocab_size = ASSUMED_VOCABULARY
    return (
        f"a vocabulary of {ASSUMED_VOCABULARY:,}, for the recipe does not say: give --vocab-size, as the tokenizer has it",
    )


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


def _validated(args: argparse.Namespace, tell: Callable[[argparse.Namespace], None]) -> argparse.Namespace:
    validate_args(args)
    args.padded_vocab_size = padded_vocab_size(args)
    tell(args)
    return args


def _priced(checked: CheckedRecipe) -> Job:
    args, competition = checked.job.args, checked.job.competition
    competes = competition is not None and competition.config.enabled
    return Job(
        args,
        checked.job.transformer,
        None if competition is None else competition.config,
        ParallelSizes.of(args),
        checked.gpus_per_node,
        competition.schedule if competition is not None and competes else None,
        checked.assumed,
        needed_version(args),
    )


def padded_vocab_size(args: argparse.Namespace) -> int:
    """The vocabulary as Megatron pads it; a plan opens no tokenizer."""
    if args.padded_vocab_size is not None:
        return int(args.padded_vocab_size)
    return calculate_padded_vocab_size(
        args.vocab_size, args.make_vocab_size_divisible_by, args.tensor_model_parallel_size, logging_enabled=False
    )
