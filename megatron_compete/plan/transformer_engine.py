"""The Transformer Engine that a job needs: the newest that any of its arguments asks Megatron for.

Some of these Megatron checks while it validates arguments, most only when it builds the model or takes the first step.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from packaging.version import Version

Applies = Callable[[argparse.Namespace], object]


@dataclass(frozen=True)
class NeededVersion:
    """The least version, and the flags that need it."""

    version: str
    flags: tuple[str, ...]

    def __str__(self) -> str:
        return f"Transformer Engine >= {self.version} ({', '.join(self.flags)})"


@dataclass(frozen=True)
class Need:
    """A setting, and the least version with it."""

    flag: str
    version: str
    applies: Applies
    source: str
    """Where Megatron asks."""


def _fp8(recipe: str) -> Applies:
    return lambda a: a.fp8 and a.fp8_recipe == recipe


def _recomputes_norms_in_fp8(args: argparse.Namespace) -> bool:
    return bool(args.fp8 and {"moe_act", "layernorm"} & set(args.recompute_modules or ()))


def _graphs(args: argparse.Namespace) -> bool:
    return args.cuda_graph_impl == "transformer_engine"


NEEDS = (
    Need("--transformer-impl transformer_engine", "1.7.0", lambda a: True, "core/extensions/transformer_engine_spec_provider.py"),
    Need("--moe-grouped-gemm", "1.11.0", lambda a: a.moe_grouped_gemm, "core/transformer/transformer_config.py"),
    Need("--fp8-recipe delayed", "1.0.0", _fp8("delayed"), "core/fp8_utils.py"),
    Need("--fp8-recipe tensorwise", "2.2.0", _fp8("tensorwise"), "core/fp8_utils.py"),
    Need("--fp8-recipe mxfp8", "2.1.0", _fp8("mxfp8"), "core/fp8_utils.py"),
    Need("--fp8-recipe blockwise", "2.3.0", _fp8("blockwise"), "core/fp8_utils.py"),
    Need("--fp4-format", "2.7.0", lambda a: a.fp4, "training/arguments.py"),
    Need("--moe-router-fusion with a balance loss", "2.7.0", lambda a: a.moe_router_fusion and a.moe_aux_loss_coeff,
         "core/transformer/moe/moe_utils.py"),
    Need("--moe-single-grouped-weight", "2.14.0", lambda a: a.moe_single_grouped_weight, "core/transformer/transformer_config.py"),
    Need("--moe-router-fusion", "2.6.0", lambda a: a.moe_router_fusion, "core/transformer/moe/moe_utils.py"),
    Need("--moe-router-fusion with --moe-router-score-function sqrtsoftplus", "2.13.0",
         lambda a: a.moe_router_fusion and a.moe_router_score_function == "sqrtsoftplus", "core/transformer/moe/moe_utils.py"),
    Need("--moe-permute-fusion", "2.1.0", lambda a: a.moe_permute_fusion, "core/transformer/moe/moe_utils.py"),
    Need("--use-precision-aware-optimizer", "2.1.0", lambda a: a.use_precision_aware_optimizer and not a.optimizer_cpu_offload,
         "core/optimizer/optimizer_config.py"),
    Need("--recompute-modules layernorm or moe_act under FP8", "2.6.0", _recomputes_norms_in_fp8, "core/transformer/transformer_config.py"),
    Need("--softmax-type", "2.8.0", lambda a: a.softmax_type != "vanilla", "core/extensions/transformer_engine.py"),
    Need("--delay-wgrad-compute", "2.3.0", lambda a: a.delay_wgrad_compute, "core/extensions/transformer_engine.py"),
    Need("--delay-wgrad-compute with --overlap-grad-reduce", "2.8.0",
         lambda a: a.delay_wgrad_compute and a.overlap_grad_reduce, "training/arguments.py"),
    Need("--delay-wgrad-compute with CUDA graphs", "2.10.0", lambda a: a.delay_wgrad_compute and _graphs(a),
         "core/transformer/transformer_config.py"),
    Need("--overlap-dispatch-backward-with-experts-wgrad", "2.3.0", lambda a: a.overlap_dispatch_backward_with_experts_wgrad,
         "core/transformer/transformer_config.py"),
    Need("--cuda-graph-impl transformer_engine", "1.10.0", _graphs, "core/transformer/transformer_layer.py"),
    Need("--fine-grained-activation-offloading with CUDA graphs", "2.14.0",
         lambda a: a.fine_grained_activation_offloading and a.cuda_graph_impl != "none", "core/transformer/transformer_layer.py"),
    Need("--use-transformer-engine-op-fuser", "2.14.0", lambda a: a.use_transformer_engine_op_fuser,
         "core/transformer/moe/experts.py"),
    Need("--qk-clip", "2.9.0", lambda a: a.qk_clip, "training/arguments.py"),
    Need("--log-max-attention-logit", "2.9.0", lambda a: a.log_max_attention_logit, "training/arguments.py"),
)  # fmt: skip

NEWEST = max((need.version for need in NEEDS), key=Version)
"""What no check of Megatron's asks beyond."""


def needed_version(args: argparse.Namespace) -> NeededVersion | None:
    """What these arguments need; None with `--transformer-impl local`, which asks for none."""
    if args.transformer_impl == "local":
        return None
    wanted = [need for need in NEEDS if need.applies(args)]
    version = max((need.version for need in wanted), key=Version)
    return NeededVersion(version, tuple(need.flag for need in wanted if need.version == version))
