"""What a vision-language model asks of its layout, and what it cannot have yet."""

import argparse
from collections.abc import Iterable, Iterator

from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from megatron_compete.common.errors import CompeteError
from megatron_compete.layout.facts import Facts
from megatron_compete.vlm.config import PARTS, VisionConfig
from megatron_compete.vlm.validation import (
    ONE_CHUNK,
    PATCHES_ARE_WHOLE,
    SEQUENCES_ARE_WHOLE,
    broken_experts,
    refused,
)


def vision(f: Facts) -> Iterable[str]:
    """Rules of `megatron_compete/vlm/`; nothing for a language model."""
    try:
        settings = VisionConfig.from_arguments(f.args)
    except CompeteError as error:
        yield str(error)
        return
    if settings.model_type is None:
        return
    yield from _image(f)
    yield from excluded(f.args)
    yield from _experts(f, settings)


def _image(f: Facts) -> Iterable[str]:
    """A picture has a patch at least; what is left beside whole ones is not looked at (`vlm/tower.py`)."""
    for flag, size in (("--img-h", f.args.img_h), ("--img-w", f.args.img_w)):
        if size < f.args.patch_dim:
            yield f"{flag} {size} is below --patch-dim {f.args.patch_dim}: change one"
    if f.args.num_channels != 3:
        yield f"--num-channels {f.args.num_channels}: Megatron's towers take pictures of 3 channels, leave it out"


def excluded(args: argparse.Namespace) -> Iterator[str]:
    """Flags that would be taken and ignored, or end in a traceback; what else is refused is in `vlm/validation.py`."""
    for applies, flag, reason in (*_of_layout(args), *_of_model(args), *_of_data(args)):
        if applies:
            yield refused(flag, reason)


def check_excluded(args: argparse.Namespace) -> None:
    """Raise a `CompeteError` for the first: for a job that a checkpoint or a file completes, whose other rules come later."""
    if args.vision_model_type is not None:
        for rule in excluded(args):
            raise CompeteError(rule)


Row = tuple[object, str, str]
"""Whether a flag is given, the flag, and why it is refused."""


def _of_layout(args: argparse.Namespace) -> tuple[Row, ...]:
    tp, cp, stages = args.tensor_model_parallel_size, args.context_parallel_size, args.pipeline_model_parallel_size
    layout = args.pipeline_model_parallel_layout
    chunks = PipelineParallelLayerLayout.get_num_stages_from_str(layout) if layout is not None else stages
    per_chunk, per_rank = args.num_layers_per_virtual_pipeline_stage, args.num_virtual_stages_per_pipeline_rank
    return (
        (tp > 1, f"--tensor-model-parallel-size {tp}", PATCHES_ARE_WHOLE),
        (cp > 1, f"--context-parallel-size {cp}", SEQUENCES_ARE_WHOLE),
        (per_chunk is not None, "--num-layers-per-virtual-pipeline-stage", ONE_CHUNK),
        (per_rank is not None, "--num-virtual-stages-per-pipeline-rank", ONE_CHUNK),
        (chunks > stages, f"--pipeline-model-parallel-layout '{layout}' on {stages} stages", ONE_CHUNK),
    )


def _of_model(args: argparse.Namespace) -> tuple[Row, ...]:
    output = "Megatron looks for a model's output layer where LLaVAModel has its decoder"
    return (
        (args.rotary_seq_len_interpolation_factor is not None, "--rotary-seq-len-interpolation-factor", "LLaVAModel does not hand it on"),
        (args.position_embedding_type == "mrope", "--position-embedding-type mrope", "LLaVAModel tells its decoder no positions"),
        (args.logits_load_dir is not None, "--logits-load-dir", output),
        (args.logits_save_dir is not None, "--logits-save-dir", output),
        (args.vision_pretraining, "--vision-pretraining", "it is about a tower that is trained alone"),
        (args.decoder_seq_length is not None, "--decoder-seq-length", "--seq-length is the decoder's, image embeddings included"),
    )  # fmt: skip


def _of_data(args: argparse.Namespace) -> tuple[Row, ...]:
    apart = "conversations are kept apart by --pack-conversations alone"
    indexed = "it is about indexed datasets, and conversations are JSON"
    return (
        (args.sft, "--sft", "conversations are read from JSON already"),
        (args.mock_data, "--mock-data", "there are no synthetic pictures: give --train-data-path"),
        (args.fim_data, "--fim-data", "it is for text alone"),
        (args.eod_mask_loss, "--eod-mask-loss", "the loss counts what is answered, and the end of it"),
        (args.reset_position_ids, "--reset-position-ids", apart),
        (args.reset_attention_mask, "--reset-attention-mask", apart),
        (args.dataloader_inter_document_masking, "--dataloader-inter-document-masking", apart),
        (args.multiple_validation_sets, "--multiple-validation-sets", "files for validation are one set"),
        (args.per_dataset_sequences_path is not None, "--per-dataset-sequences-path", indexed),
        (args.object_storage_cache_path is not None, "--object-storage-cache-path", indexed),
        (args.dataloader_fast_cache_load, "--dataloader-fast-cache-load", indexed),
        (args.dataloader_defer_npy_index_mmap, "--dataloader-defer-npy-index-mmap", indexed),
        (not args.mmap_bin_files, "--no-mmap-bin-files", indexed),
    )


def _experts(f: Facts, settings: VisionConfig) -> Iterable[str]:
    chosen = settings.experts_in
    if not f.args.num_experts:
        if chosen != VisionConfig.experts_in or settings.num_experts or settings.router_topk:
            yield "--experts-in, --vision-num-experts and --vision-router-topk need --num-experts: add it, or leave them out"
        return
    of_vision = [part for part in PARTS[:2] if part in chosen]
    own = settings.num_experts or settings.router_topk
    if own and not of_vision:
        yield "--vision-num-experts and --vision-router-topk have no effect without vision or projector in --experts-in"
    elif own:
        experts, top = settings.num_experts or f.args.num_experts, settings.router_topk or f.args.moe_router_topk
        yield from broken_experts(of_vision[0], experts, top, f.ep, f.args.moe_router_num_groups)
    if "language" not in chosen:
        yield from _of_dense_decoder(f.args, settings)
    shared = f.args.moe_shared_expert_intermediate_size
    if shared and of_vision:
        yield (
            f"--moe-shared-expert-intermediate-size {shared}: experts of tower and projector have biases, and Megatron's shared "
            "experts have none; leave it out, or give --experts-in language"
        )


def _of_dense_decoder(args: argparse.Namespace, settings: VisionConfig) -> Iterator[str]:
    """Flags about experts that tower and projector do not take from the decoder (`vlm/transformers.py`)."""
    for given, flag in (
        (args.moe_layer_freq != 1, "--moe-layer-freq"),
        (args.moe_latent_size is not None, f"--moe-latent-size {args.moe_latent_size}"),
        (args.moe_apply_probs_on_input, "--moe-apply-probs-on-input"),
    ):
        if given:
            yield f"{flag} is about the decoder, which has no experts: add language to --experts-in ({', '.join(PARTS)})"
    modules = [module for module in args.recompute_modules or () if module in ("moe", "moe_act", "shared_experts")]
    if args.recompute_granularity == "selective" and modules and not settings.recompute:
        yield (
            f"--recompute-modules {' '.join(modules)} is about experts, and the decoder has none: add --recompute-vision, or "
            "leave it out"
        )
