"""One training job as its recipe describes it: Megatron's own arguments and settings for a given number of GPUs.

The recipe goes through the trainer's own checks on a pretended machine (`plan/recipe_check.py`).
"""

import argparse
import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_compete.config import CompeteConfig
from megatron_compete.launch.recipe import Recipe
from megatron_compete.layout.scope import check_scope
from megatron_compete.layout.sizes import ParallelSizes
from megatron_compete.moe.competition import moe_stage_chunks
from megatron_compete.plan.layers import Layers
from megatron_compete.plan.recipe_check import CheckedRecipe, check_recipe
from megatron_compete.plan.transformer_engine import NeededVersion, needed_version
from megatron_compete.plan.vision import Vision
from megatron_compete.schedule import CompetitionSchedule
from megatron_compete.vlm.config import PARTS, Part


@dataclass(frozen=True)
class Job:
    """A job that Megatron would accept.

    A vision-language model has several `parts`, each a stack of layers with settings and sequences of its own. Each is a
    `Job` too, the whole one being its decoder's: what is said of a layer here is said of a layer of `part`.
    """

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
    vision: Vision | None = None
    """What stands before the decoder; None in a language model."""
    part: Part = "language"
    """The part of the model that `transformer` is of."""

    @cached_property
    def parts(self) -> tuple["Job", ...]:
        """The model's parts, in the order in which a token passes them, the decoder last."""
        if self.vision is None:
            return (self,)
        transformer_of = self.vision.config.transformer_of
        return tuple(dataclasses.replace(self, part=part, transformer=transformer_of(part)) for part in PARTS)

    @property
    def competes(self) -> bool:
        """Whether any layer ever competes."""
        return self.compete is not None and self.compete.enabled

    @property
    def is_dense(self) -> bool:
        """Whether no layer has experts."""
        return not any(kind.is_moe for part in self.parts for kind in part.layers.kinds)

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
        return self.sequences * self.sequence_length // self.sizes.cp

    @property
    def sequences(self) -> int:
        """Sequences of a microbatch; a tile is one."""
        tiles = self.vision.tiles if self.vision is not None and self.part != "language" else 1
        return int(self.args.micro_batch_size) * tiles

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence."""
        if self.vision is not None and self.part != "language":
            return self.vision.sequence_length(self.part)
        return int(self.args.seq_length)

    @property
    def is_causal(self) -> bool:
        """Whether a token sees those before it alone; patches see each other."""
        return self.part == "language"

    @property
    def trains(self) -> bool:
        """Whether the weights of this part are trained."""
        return self.vision is None or self.vision.config.trains(self.part)

    @property
    def gradients_reach(self) -> bool:
        """Whether the part's input has a gradient."""
        return self.vision is None or self.vision.config.gradients_reach(self.part)

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
    def input_width(self) -> int:
        """Width of what a layer gets; of a projector the tower's hidden size, its output being `hidden_size` wide."""
        if self.vision is not None and self.part == "projector":
            return int(self.vision.config.tower.hidden_size)
        return int(self.transformer.hidden_size)

    @property
    def expert_width(self) -> int:
        """Width of what experts get: the hidden size, or the latent's (`--moe-latent-size`)."""
        return int(self.transformer.moe_latent_size or self.input_width)

    @property
    def expert_output(self) -> int:
        """Width of what experts give: the same, but in a projector."""
        return int(self.transformer.moe_latent_size or self.transformer.hidden_size)

    @cached_property
    def layers(self) -> Layers:
        """The part's layers in their pipeline layout."""
        if self.vision is not None and self.part != "language":
            kind = self.vision.layer_kind(self.part)
            return Layers.on_first_stage(kind, int(self.transformer.num_layers), self.sizes.pp)
        return Layers.of(self.args, self.transformer)

    @cached_property
    def competing_parts(self) -> tuple["Job", ...]:
        """For each layer that can compete, in order of depth, the part that it is of."""
        if not self.competes:
            return ()
        counts = ((part, len(moe_stage_chunks(part.transformer, self._pattern))) for part in self.parts)
        return tuple(part for part, count in counts for _ in range(count))

    @cached_property
    def stage_chunks(self) -> tuple[tuple[int, int], ...]:
        """(stage, chunk) of each layer that can compete, in order of depth."""
        if not self.competes:
            return ()
        return tuple(place for part in self.parts for place in moe_stage_chunks(part.transformer, self._pattern))

    @property
    def _pattern(self) -> str | None:
        """`--hybrid-layer-pattern`, which no model of several parts has."""
        pattern: str | None = self.args.hybrid_layer_pattern
        return pattern


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


def _priced(checked: CheckedRecipe) -> Job:
    args, competition = checked.job.args, checked.job.competition
    competes = competition is not None and competition.config.enabled
    model = checked.job.vision_language
    vision = None if model is None else Vision.of(args, model)
    return Job(
        args,
        checked.job.transformer,
        None if competition is None else competition.config,
        ParallelSizes.of(args),
        checked.gpus_per_node,
        competition.schedule if competition is not None and competes else None,
        (*checked.assumed, *(() if vision is None else vision.assumptions())),
        needed_version(args),
        vision,
    )
