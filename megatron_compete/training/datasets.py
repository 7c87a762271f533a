"""Megatron's GPT datasets from Megatron's data arguments."""

from typing import Any

from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.training import get_args, get_tokenizer, print_rank_0
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_compete.training.index_cache import whole_files


def dataset_config(args: Any) -> GPTDatasetConfig:
    """Megatron's dataset settings from its arguments."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    return GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        multiple_validation_sets=args.multiple_validation_sets,
        full_validation=args.full_validation,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=get_tokenizer(),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        object_storage_cache_path=args.object_storage_cache_path,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
    )


def _is_built_on_this_rank(vp_stage: int | None) -> bool:
    """Only tensor parallel rank 0 of a stage that reads tokens or labels needs samples."""
    if mpu.get_tensor_model_parallel_rank() != 0:
        return False
    stage: Any = {"ignore_virtual": vp_stage is None, "vp_stage": vp_stage}
    return (
        mpu.is_pipeline_first_stage(**stage)
        or mpu.is_pipeline_last_stage(**stage)
        or mtp_on_this_rank(mtp_num_layers=get_args().mtp_num_layers, **stage)
    )


def build_datasets(num_samples: list[int], vp_stage: int | None = None) -> Any:
    """Train, validation and test sets of `num_samples` sequences each (Megatron's dataset provider).

    `--mock-data` trains on Megatron's synthetic tokens.
    """
    args = get_args()
    dataset = MockGPTDataset if args.mock_data else GPTDataset
    print_rank_0("> building train, validation and test datasets ...")
    builder = BlendedMegatronDatasetBuilder(
        dataset, num_samples, lambda: _is_built_on_this_rank(vp_stage), dataset_config(args)
    )
    with whole_files():
        return builder.build()


build_datasets.is_distributed = True  # type: ignore[attr-defined]  # every rank calls it; the builder decides who builds
