"""From settings to datasets."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_compete.data.conversations.chat import Chat, hugging_face_tokenizer
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.conversation import IMAGE
from megatron_compete.data.conversations.dataset import ConversationDataset
from megatron_compete.data.conversations.order import split as split_numbers
from megatron_compete.data.conversations.pixels import Pixels
from megatron_compete.data.conversations.reader import Reader
from megatron_compete.data.conversations.sample_list import SampleList


def build_reader(
    config: ConversationConfig,
    tokenizer: Any,
    *,
    vision_model_type: str,
    img_h: int,
    img_w: int,
    seq_length: int,
    image_embeddings: int,
    image_token: str = IMAGE,
) -> Reader:
    """How samples are read.

    Args:
        tokenizer: Megatron's (of --tokenizer-type HuggingFaceTokenizer), or transformers' itself.
        seq_length: positions of a sequence, image embeddings included.
        image_embeddings: of a tile: `vlm.parts.image_embeddings`.
    Raises:
        CompeteError: a folder is not there; tokenizer, template or image processor cannot be used.
    """
    config.check_folders()
    own = tokenizer if hasattr(tokenizer, "apply_chat_template") and hasattr(tokenizer, "is_fast") else None
    chat = Chat(own or hugging_face_tokenizer(tokenizer), config.template, image_token)
    pixels = Pixels(config, vision_model_type, img_h, img_w)
    return Reader(config, chat, pixels, seq_length=seq_length, image_embeddings=image_embeddings)


def build_conversations(
    reader: Reader,
    samples: Path | str | SampleList,
    *,
    num_samples: int | None,
    seed: int,
    batch_size: int,
    share: tuple[float, float] = (0.0, 1.0),
    with_images: bool = True,
    split: Any = None,
) -> ConversationDataset:
    """A dataset of listed samples; every rank builds it from the same list.

    Args:
        samples: the list that `prepare_samples` made, or its file.
        num_samples: length; more than there are samples are several epochs; None is one.
        batch_size: the global one.
        share: part of the samples, for --split: (0.0, 0.95) for training, (0.95, 1.0) for validation.
        with_images: False on pipeline stages that do not read pixels.
        split: Megatron's `Split`.
    Raises:
        CompeteError: the list is damaged, or the part is empty.
    """
    listed = samples if isinstance(samples, SampleList) else SampleList.load(Path(samples))
    numbers = np.arange(len(listed)) if share == (0.0, 1.0) else split_numbers(len(listed), *share)
    return ConversationDataset(
        listed,
        numbers,
        reader,
        num_samples=num_samples,
        seed=seed,
        batch_size=batch_size,
        with_images=with_images,
        split=split,
    )
