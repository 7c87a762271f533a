"""Flags of recipes for other versions of Megatron that 0.19.2 has not, and what it has instead.

Public recipes carry them, and argparse's "unrecognized arguments" leaves the user searching.
"""

RENAMED = {
    "--linear-attention-type": "--experimental-attention-variant, with the same value",
    "--no-weight-decay-cond-type": "--apply-wd-to-qk-layernorm, which is what qwen3_next meant",
    "--offload-optimizer-states": "--optimizer-cpu-offload, which computes the step on the CPU as well",
    "--use-custom-fsdp": "--use-megatron-fsdp",
    "--cpu-offloading": "--cpu-offloading-num-layers N",
    "--moe-extended-tp": "--expert-tensor-parallel-size",
    "--hybrid-attention-ratio": "--hybrid-layer-pattern",
    "--hybrid-mlp-ratio": "--hybrid-layer-pattern",
    "--moe-use-legacy-grouped-gemm": "nothing in its place, the legacy kernels are gone: leave it out",
    "--use-legacy-models": "nothing in its place, the legacy models are gone: leave it out",
    "--no-async-tensor-model-parallel-allreduce": "nothing in its place: leave it out",
}
"""Flag -> what Megatron-Core 0.19.2 has. `--no-weight-decay-cond-type` is known there with another value alone."""


def with_replacements(message: str) -> str:
    """argparse's complaint, and for each flag in it that is known from elsewhere what to give."""
    advice = [f"for {word} Megatron-Core 0.19.2 has {RENAMED[word]}" for word in _flags(message) if word in RENAMED]
    return message if not advice else f"{message} ({'; '.join(advice)})"


def _flags(message: str) -> list[str]:
    words = (word.split("=")[0].rstrip(":,") for word in message.split())
    return [word for word in words if word.startswith("--")]
