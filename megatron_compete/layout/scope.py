"""What the planner does not know: refused with the flag's name and the reason, never guessed."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class OutOfScope:
    """A setting of Megatron's whose cost is not in these formulas."""

    flag: str
    applies: Callable[[argparse.Namespace], object]
    reason: str


OUT_OF_SCOPE = (
    OutOfScope("--step-batch-size-schedule", lambda a: a.step_batch_size_schedule is not None,
               "a plan is of one batch: give each of its sizes as --global-batch-size"),
    OutOfScope("--decrease-batch-size-if-needed", lambda a: a.decrease_batch_size_if_needed,
               "the batch then is another than the one that is given: give that"),
    OutOfScope("--experimental-attention-variant dsa", lambda a: a.experimental_attention_variant == "dsa",
               "what its indexer selects depends on the data"),
    OutOfScope("--hybrid-layer-pattern with D", lambda a: "D" in (a.hybrid_layer_pattern or ""),
               "what its indexer selects depends on the data"),
    OutOfScope("--heterogeneous-layers-config-path", lambda a: a.heterogeneous_layers_config_path,
               "its layers are in a file that need not be here"),
    OutOfScope("--tensor-parallel-num-weight-shards", lambda a: a.gtp_weight_remat_size > 1,
               "Megatron's weight sharding is an experiment whose traffic was not read"),
    OutOfScope("--expert-tensor-parallel-num-weight-shards", lambda a: a.expert_gtp_weight_remat_size > 1,
               "Megatron's weight sharding is an experiment whose traffic was not read"),
    OutOfScope("--optimizer", lambda a: a.optimizer in ("soap", "adaptive_muon"),
               "its state and products were not read"),
    OutOfScope("--hybrid-context-parallel", lambda a: a.hybrid_context_parallel,
               "its groups follow from the lengths of the samples"),
    OutOfScope("--hierarchical-context-parallel-sizes", lambda a: a.hierarchical_context_parallel_sizes,
               "its two levels of groups are not among these"),
)  # fmt: skip


def check_scope(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for the first setting, of validated arguments, that is not counted here."""
    for setting in OUT_OF_SCOPE:
        if setting.applies(args):
            raise CompeteError(f"{setting.flag} is not in the planner's formulas: {setting.reason}")
