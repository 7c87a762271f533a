import argparse
import re
from typing import Any

import pytest
from megatron.training.arguments import add_megatron_arguments

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.job_rules import check_conversation_arguments


def arguments(**given: Any) -> argparse.Namespace:
    """Megatron's own, as a job of a vision-language model has them."""
    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    return argparse.Namespace(**vars(parser.parse_args([])) | {"vision_model_type": "siglip"} | given)


ENERGON = {"energon_path": "d", "dataloader_type": "external"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"vision_model_type": None, "pack_conversations": True},
            "--pack-conversations is about conversations with images",
        ),
        (
            {"vision_model_type": None, "conversation_template": "plain"},
            "--conversation-template is about conversations",
        ),
        ({"dataloader_type": "cyclic"}, "--dataloader-type cyclic draws an order of its own"),
        ({"pack_conversations": True, "transformer_impl": "local"}, "--pack-conversations needs attention that keeps"),
        ({"pack_conversations": True, "micro_batch_size": 2}, "give --micro-batch-size 1 and not 2"),
        (
            {"group_by_modality": True, "step_batch_size_schedule": "0:8 1000:16"},
            "--group-by-modality fills global batches of one size, and --step-batch-size-schedule has several",
        ),
        (
            {"dataloader_type": "external"},
            "--dataloader-type external reads a megatron-energon dataset: give --energon-path",
        ),
        (
            {"energon_path": "d"},
            "--energon-path is read from outside of Megatron's loader: give --dataloader-type external",
        ),
        ({"dataloader_save": "d"}, "--dataloader-save keeps an external loader's place"),
        (ENERGON | {"train_data_path": ["a.json"]}, "--train-data-path has no effect with --energon-path"),
        (ENERGON | {"full_validation": True}, "--full-validation needs to know how many samples there are"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(CompeteError, match=re.escape(message)):
        check_conversation_arguments(arguments(**given))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"vision_model_type": None},
        {"pack_conversations": True, "micro_batch_size": 1},
        {"group_by_modality": True},
        ENERGON | {"dataloader_save": "d"},
    ],
)
def test_what_is_taken(given: dict[str, Any]) -> None:
    check_conversation_arguments(arguments(**given))
