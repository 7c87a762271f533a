"""What to tokenise, with what, and where to."""

import os
from dataclasses import dataclass, field
from typing import Literal

from megatron_compete.common.command_line import check_options, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.progress import MEGABYTE
from megatron_compete.data.bad_documents import OnError
from megatron_compete.data.inputs.options import InputOptions
from megatron_compete.data.megatron_tokenizer import TokenizerChoice

EmptyDocuments = Literal["keep", "reject"]

STOPPED_EXIT_CODE = os.EX_TEMPFAIL
"""Exit code (75) of a run that was told to stop: the same command continues it."""


class Stopped(Exception):
    """A run that was told to stop and can be continued; says how far it came."""


def _megabytes(text: str) -> int:
    try:
        return max(0, round(float(text) * MEGABYTE))
    except (ValueError, OverflowError):
        raise CompeteError(f"--shard-size {text}: give megabytes, 8 for example") from None


@dataclass(frozen=True)
class Preprocessing:
    """One job of `megatron-compete preprocess`.

    Raises:
        CompeteError: a value that cannot be used.
    """

    inputs: tuple[str, ...] = option(hidden=True)
    """Files, folders or glob patterns, `-` for standard input; documents keep their order."""

    output_prefix: str = option(metavar="PREFIX", help="where to write, without suffix")
    """`{output_prefix}_{key}_document` is the prefix that Megatron's --data-path takes."""

    tokenizer: TokenizerChoice = option()

    json_keys: tuple[str, ...] = option(
        ("text",), metavar="KEY", help="keys, or columns, that become a dataset each (default: text)"
    )
    """Keys that become a dataset each. A document that lacks one is bad for all, so they stay aligned."""

    append_eod: bool = False
    """End every document that has tokens with the tokenizer's end-of-document id."""

    workers: int = option(
        1,
        help="processes that tokenise, on each MPI rank (default: as many as there are usable cores, or 1 where ranks "
        "share a node)",
    )
    """Processes that tokenise, on each rank; 1 without MPI is this one."""

    log_interval: int | None = option(
        None, metavar="DOCUMENTS", help="documents between two progress lines, in place of a minute"
    )
    """Documents between two progress lines; None is a line a minute."""

    on_error: OnError = option("fail", help="at a bad document: stop, or list it and go on")
    """What to do about bad documents."""

    empty_documents: EmptyDocuments = "keep"
    """A document without tokens: keep it as an empty one, as Megatron-LM's tool does, or take it for a bad one."""

    reading: InputOptions = field(default_factory=InputOptions)

    engine: str = option("auto", hidden=True)
    """What tokenises: `megatron_compete.data.engines`."""

    engine_sample: int = option(4_000_000, hidden=True)
    """Bytes of the input that an engine is proven on."""

    shard_bytes: int | None = option(
        None, "--shard-size", metavar="MB", parse=_megabytes,
        help="input of one shard (default: 1 to 32 MB, by the size of the corpus)",
    )  # fmt: skip
    """Input of one shard; None goes by the size of the corpus."""

    restart: bool = option(False, help="begin again, whatever an earlier run left or finished")
    """Throw away what an unfinished run left, and redo a finished one."""

    def __post_init__(self) -> None:
        check_options(self)
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
