"""What the rules of a layout look at: arguments as parsed, by short names."""

import argparse
from dataclasses import dataclass

from megatron.core.models.hybrid.hybrid_layer_allocation import Symbols


@dataclass(frozen=True)
class Facts:
    """Parsed arguments by their short names, with Megatron's defaults where these depend on others."""

    args: argparse.Namespace
    gpus_per_node: int

    @property
    def world(self) -> int:
        return int(self.args.world_size)

    @property
    def tp(self) -> int:
        return int(self.args.tensor_model_parallel_size)

    @property
    def pp(self) -> int:
        return int(self.args.pipeline_model_parallel_size)

    @property
    def cp(self) -> int:
        return int(self.args.context_parallel_size)

    @property
    def ep(self) -> int:
        return int(self.args.expert_model_parallel_size)

    @property
    def etp(self) -> int:
        return int(self.args.expert_tensor_parallel_size or self.tp)

    @property
    def dp(self) -> int:
        """At least 1, so that rules after a broken one can go on."""
        return max(1, self.world // (self.tp * self.pp * self.cp))

    @property
    def is_hybrid(self) -> bool:
        """Whether a pattern says what the layers are, and which pipeline stage they lie on."""
        return self.pattern is not None

    @property
    def pattern(self) -> str | None:
        """`--hybrid-layer-pattern`, or by its older name."""
        return self.args.hybrid_layer_pattern or self.args.hybrid_override_pattern

    @property
    def vp(self) -> int | None:
        """Model chunks of a stage, None where other arguments do not say it yet."""
        args = self.args
        if self.pattern is not None:
            return max(1, self.pattern.split(Symbols.MTP_SEPARATOR)[0].count(Symbols.PIPE) + 1) // self.pp
        if args.pipeline_model_parallel_layout is not None:
            return None
        if args.num_virtual_stages_per_pipeline_rank is not None:
            return int(args.num_virtual_stages_per_pipeline_rank)
        if args.num_layers_per_virtual_pipeline_stage is not None:
            return int(self.split_layers // self.pp // args.num_layers_per_virtual_pipeline_stage)
        return 1

    @property
    def split_layers(self) -> int:
        """Layers to split over the stages; embedding and loss count as one each where asked for."""
        return int(
            self.args.num_layers
            + bool(self.args.account_for_embedding_in_pipeline_split)
            + bool(self.args.account_for_loss_in_pipeline_split)
        )

    @property
    def moe_layers(self) -> int:
        """Layers with experts, of all parts of the model; those of multi-token prediction do not compete."""
        tower = getattr(self.args, "vision_num_layers", None)
        if tower is None:
            return self._moe_layers_of_decoder
        counts = {"vision": tower, "projector": 1, "language": self._moe_layers_of_decoder}
        return sum(counts[part] for part in set(self.args.experts_in))

    @property
    def _moe_layers_of_decoder(self) -> int:
        if self.pattern is not None:
            return self.pattern.split(Symbols.MTP_SEPARATOR)[0].count(Symbols.MOE)
        frequency = self.args.moe_layer_freq
        if isinstance(frequency, int):
            return len(range(0, self.args.num_layers, frequency))
        return sum(frequency)


def not_over(flag: str, value: int, over: str, size: int) -> str:
    return f"{flag} {value} does not divide over {over} {size}: make the first a multiple of the second"


def multiple(value: int, unit: int) -> int:
    """The multiple of `unit` at or above `value`."""
    return -(-value // unit) * unit
