"""What is built and evaluated, and on which ranks."""

import argparse
from pathlib import Path
from typing import Any

import pytest
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from megatron_compete.training import datasets
from megatron_compete.training.loss_mask import MASKING
from tests.data.datasets import write_dataset
from tests.ranks import run_ranks
from tests.training.runs import MODEL, train_on_rank


def test_without_a_validation_part_nothing_is_evaluated(tmp_path: Path) -> None:
    """`--eval-iters` is above 0 by default, and Megatron then evaluates on nothing."""
    prefix = write_dataset(tmp_path / "some", [[list(range(100))]] * 20)
    flags = f"--data-path {prefix} --split 100,0,0 --eval-iters 1 --eval-interval 1 --train-iters 2 --full-validation"
    run_ranks(
        1, train_on_rank, [*MODEL.replace("--mock-data", "").replace("--eval-iters 0", "").split(), *flags.split()]
    )


@pytest.mark.parametrize(
    ("tied", "layout", "expected"),
    [(True, None, [4, 7]), (False, None, [4]), (False, "Et|t|m|tL", [4, 6]), (True, "Et|t|tm|L", [4, 6, 7])],
)
def test_embedding_ranks(tied: bool, layout: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    placed = None if layout is None else PipelineParallelLayerLayout(layout, 4)
    config = argparse.Namespace(mtp_num_layers=layout and 1, pipeline_model_parallel_layout=placed)
    monkeypatch.setattr(datasets, "get_args", lambda: argparse.Namespace(untie_embeddings_and_output_weights=not tied))
    monkeypatch.setattr(datasets, "core_transformer_config_from_args", lambda args: config)
    assert datasets.embedding_ranks([4, 5, 6, 7]) == expected
    assert datasets.embedding_ranks([4]) == [4]


@pytest.mark.parametrize(
    ("tensor_rank", "ends", "flags", "mtp", "built"),
    [
        (0, True, {}, False, True),
        (1, True, {"sft": True}, True, False),
        (0, False, {}, False, False),
        (0, False, {}, True, True),
        (0, False, {"sft": True}, False, True),
        (0, False, {"dataloader_inter_document_masking": True}, False, True),
        (0, False, {"calculate_per_token_loss": True}, False, False),
        (0, False, {"eod_mask_loss": True}, False, False),
        (0, False, {"calculate_per_token_loss": True, "eod_mask_loss": True}, False, True),
    ],
)
def test_who_needs_samples(
    tensor_rank: int, ends: bool, flags: dict[str, bool], mtp: bool, built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def has_mtp(layout: Any, number: Any, **where: Any) -> bool:
        asked.append((layout, number, where))
        return mtp

    config = argparse.Namespace(pipeline_model_parallel_layout="a layout", mtp_num_layers=1)
    monkeypatch.setattr(datasets.mpu, "get_tensor_model_parallel_rank", lambda: tensor_rank)
    monkeypatch.setattr(datasets, "is_first_or_last_pipeline_stage", lambda vp_stage: ends)
    monkeypatch.setattr(datasets, "core_transformer_config_from_args", lambda args: config)
    monkeypatch.setattr(datasets, "mtp_on_this_rank", has_mtp)
    off = dict.fromkeys(("calculate_per_token_loss", "dataloader_inter_document_masking", *MASKING), False)
    args = argparse.Namespace(**off | flags)
    assert datasets._is_built_on_this_rank(args, 1) is built
    assert all(one == ("a layout", 1, {"ignore_virtual": False, "vp_stage": 1}) for one in asked)
