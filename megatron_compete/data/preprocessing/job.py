"""What to tokenise, with what, and where to."""

import os
from dataclasses import dataclass, field
from typing import Literal, get_args

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.bad_documents import OnError
from megatron_compete.data.inputs.options import InputOptions
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

EmptyDocuments = Literal["keep", "reject"]
EMPTY_DOCUMENTS: tuple[str, ...] = get_args(EmptyDocuments)

STOPPED_EXIT_CODE = os.EX_TEMPFAIL
"""Exit code (75) of a run that was told to stop: the same command continues it."""


class Stopped(Exception):
    """A run that was told to stop and can be continued; says how far it came."""


@dataclass(frozen=True)
class Preprocessing:
    """One job of `tools/preprocess_data.py`.

    Raises:
        CompeteError: a value that cannot be used.
    """

    inputs: tuple[str, ...]
    """Files, folders or glob patterns, `-` for standard input; documents keep their order."""

    output_prefix: str
    """`{output_prefix}_{key}_document` is the prefix that Megatron's --data-path takes."""

    tokenizer: TokenizerChoice

    json_keys: tuple[str, ...] = ("text",)
    """Keys that become a dataset each. A document that lacks one is bad for all, so they stay aligned."""

    append_eod: bool = False
    """End every document that has tokens with the tokenizer's end-of-document id."""

    workers: int = 1
    """Processes that tokenise, on each rank; 1 without MPI is this one."""

    log_interval: int | None = None
    """Documents between two progress lines; None is a line a minute."""

    on_error: OnError = "fail"
    """What to do about bad documents."""

    empty_documents: EmptyDocuments = "keep"
    """A document without tokens: keep it as an empty one, as Megatron-LM's tool does, or take it for a bad one."""

    reading: InputOptions = field(default_factory=InputOptions)

    engine: str = "auto"
    """What tokenises: `megatron_compete.data.engines`."""

    engine_sample: int = 4_000_000
    """Bytes of the input that an engine is proven on."""

    shard_bytes: int | None = None
    """Input of one shard; None goes by the size of the corpus."""

    restart: bool = False
    """Throw away what an unfinished run left, and redo a finished one."""

    def __post_init__(self) -> None:
        for flag, value in (("--workers", self.workers), ("--log-interval", self.log_interval)):
            if value is not None and value < 1:
                raise CompeteError(f"{flag} {value}: give 1 or more")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise CompeteError("--shard-size: give more than 0 MB")
        if len(set(self.json_keys)) != len(self.json_keys):
            raise CompeteError(f"--json-keys {' '.join(self.json_keys)}: name each key once")
        if not os.path.basename(self.output_prefix):
            raise CompeteError(f"--output-prefix {self.output_prefix} is a folder: add the beginning of a file name")

    def dataset_prefix(self, key: str) -> str:
        """Path of a key's dataset without `.bin`, named as Megatron-LM's tool names it."""
        return f"{self.output_prefix}_{key}_document"

    @property
    def work_folder(self) -> str:
        """Where finished shards lie until all are there."""
        return self.output_prefix + ".work"

    @property
    def errors_path(self) -> str:
        """The list of skipped documents."""
        return self.output_prefix + ".errors.jsonl"
