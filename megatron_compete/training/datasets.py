"""Megatron's GPT datasets from Megatron's data arguments, as in Megatron-LM's own pretrain_gpt.py."""

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.transformer.multi_token_prediction import get_mtp_ranks, mtp_on_this_rank
from megatron.training import get_args, get_tokenizer, print_rank_0
from megatron.training.arguments import core_transformer_config_from_args
from megatron.training.datasets.fim_dataset import GPTFIMDataset, GPTFIMDatasetConfig
from megatron.training.datasets.sft_dataset import SFTDataset
from megatron.training.utils import is_first_or_last_pipeline_stage

from megatron_compete.common.errors import CompeteError
from megatron_compete.resilience.agreement import on_rank_0
from megatron_compete.training.data_arguments import Sources, read_sources
from megatron_compete.training.index_cache import whole_files
from megatron_compete.training.loss_mask import weighs_by_mask


def dataset_config(
    args: argparse.Namespace, sources: Sources, counts: dict[str, list[int]] | None = None
) -> GPTDatasetConfig:
    """Megatron's dataset settings from its arguments and the files that they name.

    Args:
        sources: of `read_sources`.
        counts: of `sequences_per_dataset`.
    """
    settings: dict[str, Any] = {
        "random_seed": args.seed,
        "sequence_length": args.seq_length,
        "blend": sources.blend,
        "blend_per_split": sources.per_split,
        "split": args.split,
        "multiple_validation_sets": args.multiple_validation_sets,
        "full_validation": args.full_validation,
        "num_dataset_builder_threads": args.num_dataset_builder_threads,
        "path_to_cache": args.data_cache_path,
        "mmap_bin_files": args.mmap_bin_files,
        "tokenizer": get_tokenizer(),
        "reset_position_ids": args.reset_position_ids,
        "reset_attention_mask": args.reset_attention_mask,
        "eod_mask_loss": args.eod_mask_loss,
        "create_attention_mask": args.create_attention_mask_in_dataloader,
        "object_storage_cache_path": args.object_storage_cache_path,
        "mid_level_dataset_surplus": args.mid_level_dataset_surplus,
        "allow_ambiguous_pad_tokens": args.allow_ambiguous_pad_tokens,
        "fast_cache_load": args.dataloader_fast_cache_load,
        "defer_npy_index_mmap": args.dataloader_defer_npy_index_mmap,
        "sequences_per_dataset": counts,
        "context_parallel_size": args.context_parallel_size,
        "data_parallel_size": args.data_parallel_size,
        "sequence_parallel_size": args.tensor_model_parallel_size * args.sequence_parallel,
        "hybrid_context_parallel": args.hybrid_context_parallel,
        "inter_document_masking": args.dataloader_inter_document_masking,
    }
    if not args.fim_data:
        return GPTDatasetConfig(**settings)
    return GPTFIMDatasetConfig(
        **settings,
        fim_rate=args.fim_rate,
        fim_spm_rate=args.fim_spm_rate,
        fim_extra_tokens={
            "prefix": args.fim_prefix_token,
            "middle": args.fim_middle_token,
            "suffix": args.fim_suffix_token,
            "pad": args.fim_pad_token,
            "eod": args.fim_eod_token,
        },
        fim_split_sample=args.fim_split_sample,
        fim_fragment_rate=args.fim_fragment_rate,
        fim_no_prefix=args.fim_no_prefix,
    )


def sequences_per_dataset(args: argparse.Namespace) -> dict[str, list[int]] | None:
    """Sequences, and entries of the table of documents, by prefix, from `--per-dataset-sequences-path`.

    Raises:
        CompeteError: no such file, or another form.
    """
    path = args.per_dataset_sequences_path
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            counts = json.load(file)
    except (OSError, ValueError) as error:
        raise CompeteError(f"--per-dataset-sequences-path {path} cannot be read: {error}") from error
    pairs = list(counts.values()) if isinstance(counts, dict) else [None]
    if not all(isinstance(pair, list) and [type(one) for one in pair] == [int, int] for pair in pairs):
        raise CompeteError(
            f"--per-dataset-sequences-path {path}: not an object of [sequences, documents + 1] by prefix, as Megatron-LM's "
            "tools/build_sequences_per_dataset.py writes it"
        )
    return dict(counts)


def _dataset_class(args: argparse.Namespace) -> Any:
    if args.sft:
        return SFTDataset
    if args.mock_data:
        return MockGPTDataset
    return GPTFIMDataset if args.fim_data else GPTDataset


def _is_built_on_this_rank(args: argparse.Namespace, vp_stage: int | None) -> bool:
    """Only tensor parallel rank 0 of a stage that reads tokens or labels needs samples; of packed ones, and where routers weigh
    by what the loss counts, every stage."""
    if mpu.get_tensor_model_parallel_rank() != 0:
        return False
    on_every_stage = args.sft or args.dataloader_inter_document_masking or weighs_by_mask(args)
    if on_every_stage or is_first_or_last_pipeline_stage(vp_stage):
        return True
    config = core_transformer_config_from_args(args)
    layout = config.pipeline_model_parallel_layout
    return mtp_on_this_rank(layout, config.mtp_num_layers, ignore_virtual=vp_stage is None, vp_stage=vp_stage)


def build_datasets(num_samples: list[int], vp_stage: int | None = None) -> Any:
    """Train, validation and test sets of `num_samples` sequences each (Megatron's dataset provider).

    `--mock-data` trains on Megatron's synthetic tokens. Without a validation part nothing is evaluated, of which
    Megatron, whose default is to evaluate, must be told.

    Raises:
        CompeteError: a cache that flags say is there, and is not.
    """
    args = get_args()
    print_rank_0("> building train, validation and test datasets ...")
    config = dataset_config(args, *on_rank_0(lambda: (read_sources(args), sequences_per_dataset(args))))
    _evaluate_what_there_is(config, args)
    builder = BlendedMegatronDatasetBuilder(
        _dataset_class(args), num_samples, lambda: _is_built_on_this_rank(args, vp_stage), config
    )
    with whole_files():
        built = builder.build()
    if config.defer_npy_index_mmap:
        _check_cached(built)
    return built


build_datasets.is_distributed = True  # type: ignore[attr-defined]  # every rank calls it; the builder decides who builds


def _evaluate_what_there_is(config: GPTDatasetConfig, args: argparse.Namespace) -> None:
    parts = config.blend_per_split or config.split_matrix
    if parts[1] is None and (args.eval_iters or args.full_validation):
        print_rank_0("megatron-compete: no validation part, so nothing is evaluated")
        args.eval_iters, args.full_validation = 0, False


def _check_cached(built: Any) -> None:
    """Under --dataloader-defer-npy-index-mmap files are opened at the first sample; this looks at the start."""
    for dataset in _datasets_of(built):
        for name, path in vars(dataset).items():
            if name.startswith("path_to_") and name.endswith("_index") and not os.path.isfile(path):
                raise CompeteError(
                    f"--dataloader-defer-npy-index-mmap: {path} is not there; build the cache with one run without the flag"
                )


def _datasets_of(built: Any) -> Iterator[Any]:
    """Every dataset in what a builder returns, and in blends."""
    if isinstance(built, list | tuple):
        for one in built:
            yield from _datasets_of(one)
    elif built is not None:
        yield built
        yield from _datasets_of(getattr(built, "datasets", None))


def embedding_ranks(pipeline: list[int]) -> list[int]:
    """Which ranks of a pipeline hold word embeddings that must stay alike: the first, the last if it shares the
    first's, and those of multi-token prediction, wherever a layout places them."""
    args = get_args()
    ranks = {pipeline[0]}
    if len(pipeline) > 1:
        if not args.untie_embeddings_and_output_weights:
            ranks.add(pipeline[-1])
        ranks.update(get_mtp_ranks(pipeline, core_transformer_config_from_args(args)))
    return sorted(ranks)
