"""How samples of these settings are read: one path for the checks before training and for training itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from megatron_compete.data.conversations.bad_samples import BadSample
from megatron_compete.data.conversations.chat import Chat, Encoded
from megatron_compete.data.conversations.config import ConversationConfig
from megatron_compete.data.conversations.conversation import Conversation, read_conversation
from megatron_compete.data.conversations.image_files import ImageFolder
from megatron_compete.data.conversations.pixels import Pixels
from megatron_compete.data.conversations.sample import Sample, make_sample

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Checked:
    """What is known of a sample before training."""

    length: int
    """Positions, image embeddings included."""
    tiles: tuple[int, ...]
    """Of each image."""
    dropped_turns: int
    is_cut: bool


class Reader:
    """Reads samples.

    Args:
        config: the settings.
        chat: tokenizer and template.
        pixels: what images become.
        seq_length: positions of a sequence, image embeddings included.
        image_embeddings: of a tile (`LLaVAModel.img_seq_len`).
    """

    def __init__(
        self, config: ConversationConfig, chat: Chat, pixels: Pixels, *, seq_length: int, image_embeddings: int
    ) -> None:
        self.config, self.chat, self.pixels = config, chat, pixels
        self.seq_length, self.image_embeddings = seq_length, image_embeddings
        self.folder = ImageFolder(config)

    def check(self, record: Any) -> Checked:
        """Look at a parsed sample, and at its images as --check-images says.

        Raises:
            BadSample: it cannot be used.
        """
        conversation = self.conversation(record)
        tiles = self.tiles(conversation)
        whole = self.chat.encode(conversation.messages, len(tiles))
        encoded = self._fitted(whole, tiles)
        return Checked(
            self.length(encoded, tiles), tiles, conversation.dropped_turns, is_cut=len(encoded.ids) < len(whole.ids)
        )

    def conversation(self, record: Any) -> Conversation:
        """The sample's messages and images."""
        return read_conversation(record, self.chat.image_token)

    def tiles(self, conversation: Conversation) -> tuple[int, ...]:
        """Of each image, looked at as --check-images says.

        Raises:
            BadSample: an image cannot be used.
        """
        return tuple(self.pixels.count(*self._size(name)) for name in conversation.images)

    def sample(self, conversation: Conversation, tiles: Sequence[int], with_images: bool) -> Sample:
        """The sample, with its images decoded or, for a pipeline stage that has no use for them, none.

        Args:
            tiles: of each image, as `check` found.
        Raises:
            BadSample: it cannot be used (any more), or an image has another size than before.
        """
        images = [self._tiles(name, count) for name, count in zip(conversation.images, tiles)] if with_images else []
        return self._assembled(conversation, tiles, images)

    def sample_of(self, conversation: Conversation, images: "Sequence[Image]") -> Sample:
        """The sample with images that were decoded already, by `ImageFolder.decode`.

        Raises:
            BadSample: it cannot be used.
        """
        tiles = [self.pixels(image) for image in images]
        return self._assembled(conversation, [len(part) for part in tiles], tiles)

    def _assembled(self, conversation: Conversation, tiles: Sequence[int], images: Sequence[torch.Tensor]) -> Sample:
        encoded = self._fitted(self.chat.encode(conversation.messages, len(tiles)), tiles)
        pixels = torch.cat(list(images)) if images else self.pixels.none()
        lengths = [self.image_embeddings * count for count in tiles]
        sample = make_sample(encoded, self.chat.image_id, lengths, pixels, self.chat.pad_id)
        sample["num_image_tiles"] = torch.tensor(tiles, dtype=torch.int32)
        return sample

    def length(self, encoded: Encoded, tiles: Sequence[int]) -> int:
        """Positions of a sample's tokens; the last token is only a label."""
        return len(encoded.ids) - 1 - len(tiles) + self.image_embeddings * sum(tiles)

    def _tiles(self, name: str, count: int) -> torch.Tensor:
        tiles = self.pixels(self.folder.load(name))
        if len(tiles) != count:
            raise BadSample(
                "damaged_image", f"image {name} had {count} tiles when the samples were checked, now {len(tiles)}"
            )
        return tiles

    def _size(self, name: str) -> tuple[int, int]:
        return self.folder.load(name).size if self.config.check_images == "decode" else self.folder.size(name)

    def _fitted(self, encoded: Encoded, tiles: Sequence[int]) -> Encoded:
        """The conversation itself, or its beginning where it is too long and --truncate-conversations is given."""
        length = self.length(encoded, tiles)
        if length <= self.seq_length:
            return encoded
        embeddings = f", {self.image_embeddings * sum(tiles)} of them of images" if tiles else ""
        what = f"{length} positions{embeddings}, more than --seq-length {self.seq_length}"
        if not self.config.truncate:
            raise BadSample("too_long", what)
        kept = len(encoded.ids) - (length - self.seq_length)  # text behind the images: each token is one position
        images = np.flatnonzero(encoded.ids == self.chat.image_id)
        if kept < 2 or (len(images) and images[-1] >= kept - 1):
            raise BadSample("too_long", f"{what}, and an image would be cut")
        cut = Encoded(encoded.ids[:kept], encoded.learned[:kept])
        if not cut.learned[1:].any():
            raise BadSample("nothing_to_learn", f"{what}, and the cut leaves no answer")
        return cut
