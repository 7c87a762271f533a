"""What the planner does not know: refused with the flag's name, never guessed."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from megatron_compete.common.errors import CompeteError


@dataclass(frozen=True)
class OutOfScope:
    """A setting of Megatron's whose cost is not in these formulas."""

    flag: str
    applies: Callable[[argparse.Namespace], object]


def _repeats_groups(args: argparse.Namespace) -> bool:
    """Megatron repeats query groups over tensor parallel ranks where there are fewer of them."""
    return bool(args.group_query_attention and args.num_query_groups < args.tensor_model_parallel_size)


OUT_OF_SCOPE = (
    OutOfScope("--num-query-groups", _repeats_groups),
    OutOfScope("--step-batch-size-schedule", lambda a: a.step_batch_size_schedule is not None),
    OutOfScope("--decrease-batch-size-if-needed", lambda a: a.decrease_batch_size_if_needed),
    OutOfScope("--multi-latent-attention", lambda a: a.multi_latent_attention),
    OutOfScope("--mtp-num-layers", lambda a: a.mtp_num_layers),
    OutOfScope("--hybrid-layer-pattern", lambda a: a.hybrid_layer_pattern),
    OutOfScope("--experimental-attention-variant", lambda a: a.experimental_attention_variant),
    OutOfScope("--heterogeneous-layers-config-path", lambda a: a.heterogeneous_layers_config_path),
    OutOfScope("--moe-latent-size", lambda a: a.moe_latent_size),
    OutOfScope("--attention-output-gate", lambda a: a.attention_output_gate),
    OutOfScope("--softmax-type", lambda a: a.softmax_type != "vanilla"),
    OutOfScope("--use-megatron-fsdp", lambda a: a.use_megatron_fsdp),
    OutOfScope("--use-torch-fsdp2", lambda a: a.use_torch_fsdp2),
    OutOfScope("--tensor-parallel-num-weight-shards", lambda a: a.gtp_weight_remat_size > 1),
    OutOfScope("--expert-tensor-parallel-num-weight-shards", lambda a: a.expert_gtp_weight_remat_size > 1),
    OutOfScope("--num-distributed-optimizer-instances", lambda a: a.num_distributed_optimizer_instances > 1),
    OutOfScope("--optimizer", lambda a: a.optimizer != "adam"),
    OutOfScope("--optimizer-cpu-offload", lambda a: a.optimizer_cpu_offload),
    OutOfScope("--cpu-offloading-num-layers", lambda a: a.cpu_offloading_num_layers),
    OutOfScope("--fine-grained-activation-offloading", lambda a: a.fine_grained_activation_offloading),
    OutOfScope("--overlap-moe-expert-parallel-comm", lambda a: a.overlap_moe_expert_parallel_comm),
    OutOfScope("--fp8-param-gather", lambda a: a.fp8_param_gather),
    OutOfScope("--fp4-format", lambda a: a.fp4),
    OutOfScope("--moe-expert-capacity-factor", lambda a: a.moe_expert_capacity_factor is not None),
    OutOfScope("--hybrid-context-parallel", lambda a: a.hybrid_context_parallel),
    OutOfScope("--hierarchical-context-parallel-sizes", lambda a: a.hierarchical_context_parallel_sizes),
    OutOfScope("--distribute-saved-activations", lambda a: a.distribute_saved_activations),
)  # fmt: skip


def check_scope(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for the first setting, of validated arguments, that is not counted here."""
    for setting in OUT_OF_SCOPE:
        if setting.applies(args):
            raise CompeteError(f"{setting.flag} is not in the planner's formulas: plan without it, or measure the job")
