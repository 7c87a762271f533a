"""Arguments of Megatron's that would be taken and ignored, or end in a traceback or a hang: refused by name."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch import cpu_backend as cpu


@dataclass(frozen=True)
class Refused:
    """One argument, the values that are refused, why, and the way out."""

    argument: str
    flag: str
    applies: Callable[[argparse.Namespace], object]
    reason: str


def _packed(args: argparse.Namespace) -> bool:
    return bool(args.sft or args.dataloader_inter_document_masking)


REFUSED = (
    Refused("rampup_batch_size", "--rampup-batch-size", lambda a: a.rampup_batch_size is not None,
            "Megatron-Core 0.19 ignores it: give --step-batch-size-schedule '0:SIZE TOKENS:SIZE ...' instead of "
            "--global-batch-size"),
    Refused("rerun_mode", "--rerun-mode report_stats", lambda a: a.rerun_mode == "report_stats",
            "Megatron-Core 0.19 takes the name and knows no such mode: leave it out"),
    Refused("spec", "--spec", lambda a: a.spec is not None,
            "the layers are set by this entry: use --router to choose, or another trainer"),
    Refused("inprocess_restart", "--inprocess-restart", lambda a: a.inprocess_restart,
            "a failed rank ends the job here, and the job is tried again (docs/operations/reliability.md): leave it out"),
    Refused("async_save", "--async-save", lambda a: a.async_save and cpu.is_needed(),
            "its worker process needs a GPU, and this host has none: leave it out, with --use-persistent-ckpt-worker"),
    Refused("async_save", "--async-save", lambda a: a.async_save and not a.use_persistent_ckpt_worker,
            "Megatron-Core 0.19 saves synchronously all the same unless --use-persistent-ckpt-worker is given: add it"),
    Refused("use_persistent_ckpt_worker", "--use-persistent-ckpt-worker", lambda a: a.use_persistent_ckpt_worker and not a.async_save,
            "without --async-save no worker is ever asked: add it, or leave both out"),
    Refused("perform_rl_step", "--perform-rl-step", lambda a: a.perform_rl_step,
            "reinforcement learning has an entry of its own in Megatron-LM (train_rl.py): leave it out"),
    Refused("heterogeneous_layers_config_path", "--heterogeneous-layers-config-path with --num-experts",
            lambda a: (a.heterogeneous_layers_config_path or a.heterogeneous_layers_config_encoded_json) and a.num_experts,
            "Megatron-Core 0.19 builds all layers alike where there are experts: leave one out"),
    Refused("moe_layer_freq", "--moe-layer-freq with --hybrid-layer-pattern", lambda a: a.hybrid_layer_pattern and a.moe_layer_freq != 1,
            "the E of the pattern are the MoE layers, and Megatron-Core 0.19 ignores the flag: leave it out"),
    Refused("linear_attention_freq", "--linear-attention-freq with --hybrid-layer-pattern",
            lambda a: a.hybrid_layer_pattern and a.linear_attention_freq is not None,
            "the G of the pattern are the gated delta nets, and Megatron-Core 0.19 ignores the flag: leave it out"),
    Refused("transformer_impl", "--hybrid-layer-pattern with --transformer-impl local",
            lambda a: a.hybrid_layer_pattern and a.transformer_impl == "local" and not cpu.is_needed(),
            "where there is CUDA Megatron builds hybrid layers of Transformer Engine's modules alone: leave it out"),
    Refused("transformer_impl", "--multi-latent-attention and --experimental-attention-variant with --transformer-impl local",
            lambda a: (a.multi_latent_attention or a.experimental_attention_variant) and a.transformer_impl == "local" and not cpu.is_needed(),
            "where there is CUDA Megatron has these of Transformer Engine's modules alone: leave it out"),
    Refused("use_mamba_mem_eff_path", "--disable-mamba-mem-eff-path", lambda a: not a.use_mamba_mem_eff_path and cpu.is_needed(),
            "the kernel that it means has no form for a CPU: leave it out"),
    Refused("sft", "--sft", lambda a: a.sft and a.create_attention_mask_in_dataloader,
            "its datasets make no masks: give --no-create-attention-mask-in-dataloader"),
    Refused("sft", "--sft", lambda a: a.sft and a.mock_data, "there is no synthetic dataset of dialogues: give --data-path"),
    Refused("dataloader_inter_document_masking", "--sft and --dataloader-inter-document-masking",
            lambda a: _packed(a) and a.transformer_impl == "local",
            "only Transformer Engine's attention keeps the documents of a sample apart: give --transformer-impl "
            "transformer_engine, which needs a GPU"),
    Refused("hybrid_context_parallel", "--hybrid-context-parallel", lambda a: a.hybrid_context_parallel and not a.sft,
            "it packs the dialogues of --sft: add that, or leave it out"),
    Refused("fim_data", "--fim-data", lambda a: a.fim_data and a.sft, "--sft reads other datasets: keep one"),
)  # fmt: skip


def check_refused(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for the first argument, as parsed, that this entry does not take."""
    for one in REFUSED:
        if one.applies(args):
            raise CompeteError(f"{one.flag}: {one.reason}")
