"""The same samples out of a megatron-energon dataset, for --dataloader-type external: optional, `pip install` with [energon].

Shards of a WebDataset hold, of each sample, its record as LLaVA writes it (`KEY.json`) and its images in their order
(`KEY.jpg`, or `KEY.0.jpg`, `KEY.1.png`, ...); `dataset.yaml` says `CrudeWebdataset`. Energon shuffles, and keeps its place
by data-parallel rank: a run resumes exactly with as many ranks and workers as before, and in no other layout. What it
does not know before training (how many samples are bad, that is) is found while samples are read.
"""

import io
from collections.abc import Iterator
from typing import Any

import orjson
from torch import Tensor

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.conversations.bad_samples import BadSample, SampleError
from megatron_compete.data.conversations.conversation import id_of
from megatron_compete.data.conversations.reader import Reader
from megatron_compete.data.conversations.sample import Sample, collate

try:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        SkipSample,
        WorkerConfig,
        get_savable_loader,
        get_train_dataset,
        get_val_dataset,
        stateless,
    )
    from megatron.energon.errors import reraise_exception
except ImportError as error:
    raise CompeteError(
        f"--energon-path needs megatron-energon ({error}): pip install megatron-compete[energon]"
    ) from error

SHUFFLE_BUFFER = 1000
"""Samples among which the next one is drawn, as energon's own examples have it; shards are shuffled besides."""

Batch = dict[str, Tensor]


@stateless
def _as_it_is(raw: dict[str, Any]) -> dict[str, Any]:
    return raw


class ConversationEncoder(DefaultTaskEncoder):
    """Records and images to samples, and samples to microbatches.

    Args:
        reader: how samples are read.
    """

    decoder = None  # images are decoded as those of an image folder
    cookers = (Cooker(_as_it_is),)

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader = reader

    @stateless
    def encode_sample(self, sample: dict[str, Any]) -> Sample:
        """One sample.

        Raises:
            SkipSample: it cannot be used, with --skip-bad-samples.
            SampleError: it cannot be used.
        """
        record = None
        try:
            record = orjson.loads(sample["json"])
            return self._read(record, sample)
        except (BadSample, KeyError, orjson.JSONDecodeError) as error:
            reason = error.reason if isinstance(error, BadSample) else f"no record KEY.json that is JSON ({error})"
            message = f"{sample['__key__']} (id {id_of(record)}): {reason}"
        if self.reader.config.skip_bad:
            print(f"conversations: left out {message}", flush=True)
            raise SkipSample
        raise SampleError(f"{message}: correct it; --skip-bad-samples leaves such samples out")

    def batch(self, samples: list[Sample]) -> Batch:
        """A microbatch."""
        return collate(samples)

    def _read(self, record: Any, parts: dict[str, Any]) -> Sample:
        conversation = self.reader.conversation(record)
        names = sorted((name for name in parts if name != "json" and not name.startswith("__")), key=_place)
        if len(names) != len(conversation.images):
            raise BadSample(
                "image_count", f"{len(conversation.images)} images in the record, and {len(names)} in the shard"
            )
        images = [self.reader.folder.decode(io.BytesIO(parts[name]), name) for name in names]
        return self.reader.sample_of(conversation, images)


def _place(name: str) -> tuple[int, str]:
    """Of an image among several: 2.jpg stands before 10.jpg."""
    number = name.partition(".")[0]
    return (int(number), name) if number.isdigit() else (0, name)


class EnergonBatches:
    """Microbatches of one data-parallel rank, without end; what Megatron's `RerunDataIterator` takes from outside.

    Args:
        reader: how samples are read; its settings name the dataset.
        rank: data-parallel rank.
        ranks: number of them.
        group: their process group; None on a single rank.
        workers: --num-workers.
        part: `train` or `val` of the dataset's split.
    """

    def __init__(
        self, reader: Reader, *, micro_batch_size: int, rank: int, ranks: int, group: Any = None, workers: int = 0,
        part: str = "train", seed: int = 0,
    ) -> None:  # fmt: skip
        path = reader.config.energon_path
        assert path is not None, "settings with --energon-path"
        # An error is to end the run: energon would print it and go on.
        worker_config = WorkerConfig(
            rank=rank, world_size=ranks, num_workers=workers, data_parallel_group=group, seed_offset=seed,
            global_error_handler=reraise_exception,
        )  # fmt: skip
        more = {
            "task_encoder": ConversationEncoder(reader),
            "worker_config": worker_config,
            "batch_size": micro_batch_size,
        }
        if part == "train":
            dataset = get_train_dataset(
                path, split_part=part, shuffle_buffer_size=SHUFFLE_BUFFER, max_samples_per_sequence=None, **more
            )
        else:
            dataset = get_val_dataset(path, split_part=part, **more)
        self._loader = get_savable_loader(dataset)
        self._batches: Iterator[Batch] | None = None

    def __iter__(self) -> "EnergonBatches":
        return self

    def __next__(self) -> Batch:
        """The next microbatch; of a validation part, the first again after the last."""
        if self._batches is None:
            self._batches = iter(self._loader)
        try:
            return next(self._batches)
        except StopIteration:
            self._batches = iter(self._loader)
            return next(self._batches)

    def save_state(self) -> Any:
        """This rank's place, which Megatron writes under --dataloader-save."""
        return self._loader.save_state_rank()

    def restore_state(self, state: Any) -> None:
        """Go on from there; before the first microbatch."""
        self._loader.restore_state_rank(state)
