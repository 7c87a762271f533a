"""Would a recipe train? Asked on any host: through Megatron's parser and `validate_args`, with a pretended world and device.

No process group is made and none of the files that a recipe names is needed.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from megatron.training.arguments import parse_args, validate_args
from megatron.training.vocab_utils import calculate_padded_vocab_size

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.recipe import MODULE, Recipe
from megatron_compete.layout.rules import BrokenRules
from megatron_compete.plan.pretend import pretended_gpu
from megatron_compete.resilience.resuming.changes import broken_changes
from megatron_compete.resilience.resuming.choice import load_folder
from megatron_compete.resilience.resuming.saved_run import read_saved_run
from megatron_compete.training.arguments import add_arguments
from megatron_compete.training.job_check import CheckedJob, check_job

ASSUMED_VOCABULARY = 128_000
"""Where neither `--vocab-size` nor `--padded-vocab-size` says, for a plan opens no tokenizer. That of recent models is
between 32,000 and 202,000, and at most a few per cent of their parameters hang on it."""

GPUS_PER_NODE = 8
"""Where the recipe's `nproc-per-node` does not say."""


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
        gpus: how many; None takes the recipe's nnodes * nproc-per-node.
        validated: is given the arguments once Megatron has validated them, before competition is asked.
    Raises:
        BrokenRules: all rules that the job breaks, each with a way out.
        CompeteError: what Megatron or competition refuses.
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


def padded_vocab_size(args: argparse.Namespace) -> int:
    """The vocabulary as Megatron pads it; a plan opens no tokenizer."""
    if args.padded_vocab_size is not None:
        return int(args.padded_vocab_size)
    return calculate_padded_vocab_size(
        args.vocab_size, args.make_vocab_size_divisible_by, args.tensor_model_parallel_size, logging_enabled=False
    )
