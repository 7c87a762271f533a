"""A public recipe in small: every feature that it names and that has a CPU form, on four ranks at most.

Sizes are cut and data is synthetic; what only a CUDA kernel or a package of CUDA's does is left out, listed below with
its reason. Everything else is the recipe's.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_compete.launch.recipe import read_recipe

PUBLIC = Path(__file__).parent / "public"
STEPS = 8

NO_CPU_FORM = {
    "transformer-impl": "Transformer Engine",
    "use-flash-attn": "Transformer Engine's attention",
    "moe-grouped-gemm": "grouped GEMM of Transformer Engine",
    "moe-permute-fusion": "Triton kernel",
    "moe-router-fusion": "kernel of Transformer Engine",
    "cross-entropy-loss-fusion": "compiled for CUDA",
    "cross-entropy-fusion-impl": "the same",
    "no-bias-swiglu-fusion": "nothing is fused",
    "no-rope-fusion": "nothing is fused",
    "tp-comm-overlap": "userbuffers of Transformer Engine",
    "moe-token-dispatcher-type": "flex: kernels of DeepEP and HybridEP",
    "moe-flex-dispatcher-backend": "the same",
    "moe-enable-deepep": "the same",
    "moe-deepep-num-sms": "the same",
    "moe-hybridep-num-sms": "the same",
    "moe-permute-fusion-into-hybridep": "the same",
    "fp8-format": "Transformer Engine",
    "fp8-recipe": "Transformer Engine",
    "fp8-param-gather": "Transformer Engine",
    "reuse-grad-buf-for-mxfp8-param-ag": "Transformer Engine",
    "moe-router-padding-for-fp8": "there is no FP8",
    "moe-router-padding-for-quantization": "there is no FP8",
    "use-precision-aware-optimizer": "Transformer Engine's Adam",
    "main-grads-dtype": "the same",
    "main-params-dtype": "the same",
    "exp-avg-dtype": "the same",
    "exp-avg-sq-dtype": "the same",
    "optimizer-cpu-offload": "there is nothing but a CPU",
    "overlap-cpu-optimizer-d2h-h2d": "the same",
    "offload-optimizer-states": "Transformer Engine's Adam",
    "fine-grained-activation-offloading": "there is nothing but a CPU",
    "offload-modules": "the same",
    "cuda-graph-impl": "CUDA graphs",
    "cuda-graph-scope": "CUDA graphs",
    "cuda-graph-warmup-steps": "CUDA graphs",
    "te-rng-tracker": "Transformer Engine",
    "delay-wgrad-compute": "Transformer Engine's linear layers",
}
"""Flags that are left out, and what they need."""

NO_CPU_RECOMPUTE = {"moe_act"}
"""Modules of --recompute-modules that only grouped GEMM has."""

RENAMED = {"linear-attention-type": "experimental-attention-variant"}
"""Flags of older versions that megatron-core 0.19 knows by another name."""

GONE = {"external-cuda-graph", "linear-attention-freq-type"}
"""Flags of older versions without a successor."""

OF_A_CLUSTER = {
    "data-path", "data-cache-path", "split", "no-mmap-bin-files", "tokenizer-type", "tokenizer-model", "load", "save",
    "save-interval", "auto-detect-ckpt-format", "no-load-optim", "no-load-rng", "no-save-optim", "finetune",
    "no-ckpt-fully-parallel-save", "dist-ckpt-strictness", "tensorboard-dir", "wandb-project", "wandb-exp-name",
    "exit-duration-in-mins", "distributed-timeout-minutes", "train-samples", "train-iters", "lr-decay-samples",
    "lr-warmup-samples", "lr-warmup-init", "lr", "min-lr", "eval-interval", "eval-iters", "num-workers", "mock-data",
    "log-interval", "logging-level", "manual-gc", "manual-gc-interval", "make-vocab-size-divisible-by", "vocab-size",
    "no-weight-decay-cond-type",
}  # fmt: skip
"""Data, files and length of the run: the small run has its own."""

RUN = {
    "mock-data": True, "tokenizer-type": "NullTokenizer", "vocab-size": 127, "make-vocab-size-divisible-by": 64,
    "num-workers": 0, "eval-iters": 0, "log-interval": 1, "train-iters": STEPS, "lr": 6e-3, "min-lr": 3e-4,
    "moe-token-dispatcher-type": "alltoall", "micro-batch-size": 1, "seq-length": 32, "max-position-embeddings": 32,
    "log-num-zeros-in-grad": False, "tensorboard-log-interval": 1,
}  # fmt: skip

AT_MOST = {
    "hidden-size": 64, "ffn-hidden-size": 96, "moe-ffn-hidden-size": 32, "num-attention-heads": 4, "num-query-groups": 2,
    "kv-channels": 16, "kv-lora-rank": 24, "q-lora-rank": 24, "qk-head-dim": 16, "qk-pos-emb-head-dim": 8, "v-head-dim": 16,
    "moe-shared-expert-intermediate-size": 32, "num-experts": 16, "moe-router-topk": 4, "moe-router-group-topk": 2,
    "moe-router-num-groups": 4, "linear-key-head-dim": 8, "linear-value-head-dim": 8, "linear-num-key-heads": 2,
    "linear-num-value-heads": 4, "mamba-num-heads": 4, "mamba-head-dim": 16, "mamba-state-dim": 8, "mamba-num-groups": 2,
    "tensor-model-parallel-size": 2, "pipeline-model-parallel-size": 2,
    "expert-model-parallel-size": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Small:
    """A recipe's arguments in small, and the ranks that they need."""

    arguments: dict[str, Any]
    world: int

    def argv(self, **more: Any) -> list[str]:
        """The command line's arguments, `more` (names with underscores) replacing the recipe's; None leaves one out."""
        arguments = self.arguments | {name.replace("_", "-"): value for name, value in more.items()}
        return [word for name, value in arguments.items() for word in _words(name, value)]


def _words(name: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    return [f"--{name}", *(str(one) for one in (value if isinstance(value, list) else [value]))]


def shrink(path: Path) -> Small:
    """The recipe in small."""
    given: dict[str, Any] = {RENAMED.get(name, name): value for name, value in read_recipe(path).arguments.items()}
    left_out = NO_CPU_FORM.keys() | OF_A_CLUSTER | GONE
    kept = {name: value for name, value in given.items() if name not in left_out}
    small: dict[str, Any] = (
        kept | {name: _at_most(kept[name], most) for name, most in AT_MOST.items() if name in kept} | RUN
    )
    if "moe-router-num-groups" in small and int(given["moe-router-num-groups"]) == 1:
        small["moe-router-num-groups"] = small["moe-router-group-topk"] = 1
    small |= _layers(given, small) | _recompute(small)
    if not small.get("overlap-moe-expert-parallel-comm"):  # which Megatron takes in half precision alone
        small.pop("bf16", None)  # curves are compared in fp32
    tp, pp, ep = (
        int(small.get(f"{name}-parallel-size", 1)) for name in ("tensor-model", "pipeline-model", "expert-model")
    )
    world = pp * math.lcm(tp, ep)
    dp = world // (tp * pp)
    small["global-batch-size"] = 4 * dp
    return Small(small, world)


def _recompute(small: dict[str, Any]) -> dict[str, Any]:
    given = small.get("recompute-modules")
    if given is None:
        return {}
    modules = [name for name in (given if isinstance(given, list) else [given]) if name not in NO_CPU_RECOMPUTE]
    return {"recompute-modules": modules or None, "recompute-granularity": "selective" if modules else None}


def _at_most(value: Any, most: int) -> int:
    return min(int(value), most)


def _layers(given: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """Layers, which of them are MoE, and where they lie, with all the means that the recipe uses."""
    stages = small.get("pipeline-model-parallel-size", 1)
    if "hybrid-layer-pattern" in given:
        return {"hybrid-layer-pattern": "ME*|E-E" if stages == 2 else "ME*E-E"}
    layout = given.get("pipeline-model-parallel-layout")
    virtual = given.get("num-virtual-stages-per-pipeline-rank") or given.get("num-layers-per-virtual-pipeline-stage")
    result: dict[str, Any] = {"num-layers": 4}
    if layout is not None:
        alone = re.search(r"\|mL$", str(layout)) is not None
        mtp = "m" if "m" in str(layout) else ""
        result["pipeline-model-parallel-layout"] = f"Et|t|tt|{mtp}L" if alone else f"Et|t|t|t{mtp}L"
        virtual = None
    elif given.get("decoder-first-pipeline-num-layers"):
        result |= {"decoder-first-pipeline-num-layers": 3, "decoder-last-pipeline-num-layers": 1}
    elif given.get("account-for-embedding-in-pipeline-split"):
        result["num-layers"] = 6
    if given.get("num-layers-per-virtual-pipeline-stage"):
        result["num-layers-per-virtual-pipeline-stage"] = 1 if result["num-layers"] == 4 else 2
    elif virtual:
        result["num-virtual-stages-per-pipeline-rank"] = 2
    if "moe-layer-freq" in given:
        result["moe-layer-freq"] = f"([0]*1+[1]*{result['num-layers'] - 1})"
    assert stages <= 2
    return result
