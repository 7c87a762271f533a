"""A JSON Lines corpus to Megatron's `.bin/.idx`, byte for byte what Megatron-LM's tools/preprocess_data.py writes.

    python tools/preprocess_data.py --input 'corpus/*.jsonl' --output-prefix data/corpus \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model data/tokenizer.model --append-eod --workers 8

writes `data/corpus_text_document.bin`, `.idx` and `.json` (the manifest). They appear when all of them are complete,
and replace older ones only then. What differs from Megatron-LM's tool: several inputs, malformed lines are named or
counted, every key of `--json-keys` gets its index, and a crash leaves no half-written dataset.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from megatron_compete.data.corpus import (
    ON_ERROR_CHOICES,
    BadLine,
    OnError,
    SkipLog,
    expand_inputs,
    no_documents,
    read_lines,
    total_bytes,
)
from megatron_compete.data.encode import Encoded, Encoder, encode_corpus
from megatron_compete.data.manifest import DatasetManifest, manifest_path
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.progress import MEGABYTE, CorpusProgress
from megatron_compete.data.staged import StagedFiles
from megatron_compete.errors import CompeteError


@dataclass(frozen=True)
class Preprocessing:
    """What to tokenise, with what, and where to.

    Raises:
        CompeteError: a value that cannot be used.
    """

    inputs: tuple[str, ...]
    """JSON Lines files or glob patterns; documents keep their order."""

    output_prefix: str
    """`{output_prefix}_{key}_document` is the prefix that Megatron's --data-path takes."""

    tokenizer: TokenizerChoice

    json_keys: tuple[str, ...] = ("text",)
    """Keys of a line that become a dataset each. A line that lacks one is bad for all, so they stay aligned."""

    append_eod: bool = False
    """End every document that has tokens with the tokenizer's end-of-document id."""

    workers: int = 1
    """Processes that tokenise; 1 is this one."""

    log_interval: int = 1000
    """Documents between two progress lines."""

    on_error: OnError = "fail"
    """What to do about malformed lines."""

    def __post_init__(self) -> None:
        for flag, value in (("--workers", self.workers), ("--log-interval", self.log_interval)):
            if value < 1:
                raise CompeteError(f"{flag} {value}: give 1 or more")
        if len(set(self.json_keys)) != len(self.json_keys):
            raise CompeteError(f"--json-keys {' '.join(self.json_keys)}: name each key once")
        if not os.path.basename(self.output_prefix):
            raise CompeteError(f"--output-prefix {self.output_prefix} is a folder: add the beginning of a file name")

    def dataset_prefix(self, key: str) -> str:
        """Path of a key's dataset without `.bin`, named as Megatron-LM's tool names it."""
        return f"{self.output_prefix}_{key}_document"


@dataclass(frozen=True)
class Preprocessed:
    """What `preprocess` wrote."""

    prefixes: tuple[str, ...]
    """For Megatron's --data-path, one a key."""

    documents: int
    tokens: dict[str, int]
    """By key, end-of-document ids included."""

    input_bytes: int
    seconds: float
    """Of tokenising and writing; imports and start-up are not in it."""

    skips: SkipLog
    """Lines left out, by kind of fault."""


class _DatasetWriter:
    """One key's `.bin/.idx`, under temporary names."""

    def __init__(self, prefix: str, staged: StagedFiles, dtype: type[Any]) -> None:
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        self.prefix = prefix
        bin_path, self._idx_path = staged.path(prefix + ".bin"), staged.path(prefix + ".idx")
        self._manifest_path = staged.path(manifest_path(prefix))
        self._builder = IndexedDatasetBuilder(bin_path, dtype=dtype)
        self.documents = self.sequences = self.tokens = 0

    def add(self, document: Encoded) -> None:
        self._builder.add_document(document.ids, document.lengths)
        self.documents += 1
        self.sequences += len(document.lengths)
        self.tokens += int(document.ids.size)

    def finish(self, manifest: DatasetManifest) -> None:
        self._builder.finalize(self._idx_path)
        manifest.write(self._manifest_path)

    def close(self) -> None:
        self._builder.data_file.close()


def preprocess(job: Preprocessing) -> Preprocessed:
    """Tokenise the corpus and write one dataset a key.

    Raises:
        CompeteError: no corpus, no tokenizer, a malformed line (`on_error="fail"`), no tokens at all, or a place that
            cannot be written to. No output is left behind then, and older output is as it was.
    """
    files = expand_inputs(job.inputs)
    job.tokenizer.check_files()
    try:
        return _preprocess(job, files)
    except OSError as error:
        raise CompeteError(f"{error.filename or job.output_prefix}: {error.strerror or error}") from None


def _preprocess(job: Preprocessing, files: list[str]) -> Preprocessed:
    tokenizer = job.tokenizer.build()
    encoder = _make_encoder(job, tokenizer)
    skips = SkipLog(job.on_error)
    with StagedFiles() as staged:
        writers = {key: _DatasetWriter(job.dataset_prefix(key), staged, encoder.dtype) for key in job.json_keys}
        try:
            seconds = _write_documents(job, files, encoder, writers, skips)
            for key, writer in writers.items():
                if not writer.tokens:
                    raise no_documents(files, key, skips)
                writer.finish(_manifest(job, files, tokenizer.vocab_size, writer, skips))
        finally:
            for writer in writers.values():
                writer.close()
        staged.commit()
    return Preprocessed(
        prefixes=tuple(writer.prefix for writer in writers.values()),
        documents=writers[job.json_keys[0]].documents,
        tokens={key: writer.tokens for key, writer in writers.items()},
        input_bytes=total_bytes(files),
        seconds=seconds,
        skips=skips,
    )


def _make_encoder(job: Preprocessing, tokenizer: Any) -> Encoder:
    from megatron.core.datasets.indexed_dataset import DType

    eod = None
    if job.append_eod:
        eod = getattr(tokenizer, "eod", None)
        if not isinstance(eod, int) or not 0 <= eod < tokenizer.vocab_size:
            raise CompeteError(
                f"--append-eod, but {job.tokenizer.describe()} has no end-of-document id (it says {eod}): leave the "
                "flag out, or take a tokenizer with an eos"
            )
    return Encoder(tokenizer, job.json_keys, eod, DType.optimal_dtype(tokenizer.vocab_size))


def _write_documents(
    job: Preprocessing, files: list[str], encoder: Encoder, writers: dict[str, _DatasetWriter], skips: SkipLog
) -> float:
    """Seconds it took."""
    progress = CorpusProgress("tokenising", total_bytes(files), job.log_interval)
    with progress, contextlib.closing(encode_corpus(encoder, read_lines(files), job.workers)) as outcomes:
        for line, outcome in outcomes:
            if isinstance(outcome, BadLine):
                skips.add(line, outcome)
            else:
                for key, document in outcome.items():
                    writers[key].add(document)
            progress.advance(1, len(line.raw))
        return progress.seconds


def _manifest(
    job: Preprocessing, files: list[str], vocab_size: int, writer: _DatasetWriter, skips: SkipLog
) -> DatasetManifest:
    return DatasetManifest(
        tokenizer_type=job.tokenizer.tokenizer_type,
        tokenizer_model=job.tokenizer.tokenizer_model,
        tokenizer_sha256=job.tokenizer.fingerprint(),
        vocab_size=vocab_size,
        append_eod=job.append_eod,
        documents=writer.documents,
        sequences=writer.sequences,
        tokens=writer.tokens,
        inputs=[{"name": file, "bytes": os.path.getsize(file)} for file in files],
        skipped=dict(skips.counts),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """`tools/preprocess_data.py`."""
    options = vars(_parser().parse_args(argv))
    names = {field.name for field in fields(TokenizerChoice)}
    choice = TokenizerChoice(**{name: options.pop(name) for name in names & options.keys()})
    options["inputs"], options["json_keys"] = tuple(options.pop("input")), tuple(options["json_keys"])
    job = Preprocessing(tokenizer=choice, **options)
    with _sigterm_as_exit():
        done = preprocess(job)
    _print_summary(done)


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """A job scheduler's stop removes the temporary files too."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_summary(done: Preprocessed) -> None:
    for line in done.skips.report():
        print(line, file=sys.stderr)
    tokens = ", ".join(f"{count} tokens ({key})" for key, count in done.tokens.items())
    rate = done.input_bytes / MEGABYTE / done.seconds
    print(
        f"wrote {', '.join(done.prefixes)}: {done.documents} documents, {tokens}, {done.input_bytes} bytes read at "
        f"{rate:.1f} MB/s; {done.skips.summary()}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Tokenise a JSON Lines corpus into Megatron's PREFIX_KEY_document.bin/.idx, with a manifest.",
        epilog="Existing files of that name are replaced when the new ones are complete. Progress goes to stdout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_data_flags(parser.add_argument_group("data"))
    _add_tokenizer_flags(parser.add_argument_group("tokenizer"))
    run = parser.add_argument_group("run").add_argument
    run(
        "--workers", type=int, default=usable_cores(), help="processes that tokenise; as many as there are usable cores"
    )
    run("--log-interval", type=int, default=1000, help="documents between two progress lines")
    run("--on-error", choices=ON_ERROR_CHOICES, default="fail", help="at a malformed line: stop, or count it and go on")
    return parser


def _add_data_flags(group: argparse._ArgumentGroup) -> None:
    flag, no_default = group.add_argument, argparse.SUPPRESS
    flag(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        default=no_default,
        help="JSON Lines files or glob patterns",
    )
    flag("--output-prefix", required=True, metavar="PREFIX", default=no_default, help="where to write, without suffix")
    flag("--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys of a line that become a dataset each")
    flag("--append-eod", action="store_true", help="end every document with the end-of-document id")


_TYPES_HELP = (
    "SentencePieceTokenizer, HuggingFaceTokenizer, GPT2BPETokenizer, TikTokenizer, NullTokenizer, or any other that "
    "Megatron builds"
)
_MODEL_HELP = "SentencePiece or tiktoken file, Hugging Face folder or hub name"


def _add_tokenizer_flags(group: argparse._ArgumentGroup) -> None:
    flag, no_default = group.add_argument, argparse.SUPPRESS
    flag("--tokenizer-type", required=True, metavar="TYPE", default=no_default, help=_TYPES_HELP)
    flag("--tokenizer-model", metavar="PATH", default=no_default, help=_MODEL_HELP)
    flag("--vocab-size", type=int, default=no_default, help="for NullTokenizer and TikTokenizer; the others know it")
    flag("--vocab-file", metavar="FILE", default=no_default, help="of GPT2BPETokenizer and Bert's")
    flag("--merge-file", metavar="FILE", default=no_default, help="of GPT2BPETokenizer")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
