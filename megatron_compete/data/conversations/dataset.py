"""Conversations as a map-style dataset: item i follows from files, settings, seed and i alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.bad_samples import BadSample, Finding, SampleError
from megatron_compete.data.conversations.conversation import id_of
from megatron_compete.data.conversations.order import Grouped, Order, Shuffled
from megatron_compete.data.conversations.packing import Packs, pack
from megatron_compete.data.conversations.reader import Reader
from megatron_compete.data.conversations.sample import Sample, join
from megatron_compete.data.conversations.sample_list import SampleList


class ConversationDataset(Dataset[Sample]):
    """Samples in the order of training.

    Args:
        samples: all usable ones.
        numbers: those of this part.
        reader: how they are read; must be the one that listed them.
        num_samples: length, epochs in a row; None is one.
        seed: of the order, and of packing.
        batch_size: the global one, for --group-by-modality.
        with_images: whether pixels are wanted; all else is the same without.
        split: Megatron's `Split`, by which it takes the batch sizes of evaluation.
    Raises:
        CompeteError: no sample in this part.
    """

    def __init__(
        self,
        samples: SampleList,
        numbers: NDArray[np.int64],
        reader: Reader,
        *,
        num_samples: int | None,
        seed: int,
        batch_size: int,
        with_images: bool = True,
        split: Any = None,
    ) -> None:
        if not len(numbers):
            raise CompeteError(
                f"--split leaves a part without any of the {len(samples)} samples: give it a larger share"
            )
        self.samples, self.numbers, self.reader = samples, numbers, reader
        self.with_images, self.split = with_images, split
        has_images, groups = samples.has_images[numbers], reader.config.group_by_modality
        self.packs: Packs | None = None
        if reader.config.pack:
            lengths = samples.length[numbers]
            self.packs = pack(lengths, reader.seq_length, seed, has_images if groups else None)
            has_images = np.logical_or.reduceat(has_images[self.packs.samples], self.packs.bounds[:-1])
        self.num_samples = len(has_images) if num_samples is None else num_samples
        self.order: Order = Grouped(has_images, seed, batch_size) if groups else Shuffled(len(has_images), seed)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Sample:
        members = self.members(index)
        samples = [self._load(number) for number in members]
        if self.packs is None:
            return samples[0]
        lengths = [int(self.samples.length[number]) for number in members]
        return join(samples, lengths, self.reader.seq_length, self.reader.chat.image_id)

    def members(self, index: int) -> Sequence[int]:
        """The samples of an item by their numbers in the list: one, or those of a pack."""
        if not 0 <= index < self.num_samples:
            raise IndexError(index)
        place = self.order[index]
        places = np.array([place]) if self.packs is None else self.packs.of(place)
        found: list[int] = self.numbers[places].tolist()
        return found

    def _load(self, number: int) -> Sample:
        """A sample that was usable when it was listed.

        Raises:
            SampleError: it is not any more.
        """
        index, place = self.samples.index_of(number)
        record = None
        try:
            record = index.read(place)
            return self._read(record, number)
        except (BadSample, OSError) as error:
            kind, reason = (error.kind, error.reason) if isinstance(error, BadSample) else ("not_json", str(error))
            where = Finding(index.file, int(self.samples.number[number]), id_of(record), kind, reason)
            raise SampleError(
                f"{where}: it could be used when samples were checked: put it right and resume, or give --check-images "
                "decode with --skip-bad-samples, which leaves it out and reshuffles"
            ) from None

    def _read(self, record: Any, number: int) -> Sample:
        tiles = self.samples.tiles_of(number)
        sample = self.reader.sample(self.reader.conversation(record), tiles, self.with_images)
        length = len(sample["tokens"]) - len(tiles) + self.reader.image_embeddings * sum(tiles)
        if length != self.samples.length[number]:
            raise BadSample("not_json", f"it has {length} positions now, and had {self.samples.length[number]}")
        return sample
