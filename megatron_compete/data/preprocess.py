"""A corpus to Megatron's `.bin/.idx`, byte for byte what Megatron-LM's tools/preprocess_data.py writes.

    megatron-compete preprocess --input corpus --output-prefix data/corpus --append-eod --workers 8 \\
            --tokenizer-type SentencePieceTokenizer --tokenizer-model data/tokenizer.model

writes `data/corpus_text_document.bin`, `.idx` and `.json` (the manifest). They appear when all of them are complete,
and replace older ones only then. Started by `mpirun` or `srun --mpi=...`, the ranks share the work. Until the output is
complete, finished shards lie in `data/corpus.work`: after a kill or a stop the same command goes on from them.
`preprocessing/` does the work; this is the command line.
"""

import argparse
import os
import sys
from typing import Any

from megatron_compete.common.command_line import Command, add_options, take_options
from megatron_compete.common.progress import MEGABYTE
from megatron_compete.data.engines import add_engine_flags
from megatron_compete.data.inputs.options import add_input_flags, take_input_options
from megatron_compete.data.preprocessing import mpi
from megatron_compete.data.preprocessing.job import STOPPED_EXIT_CODE, Preprocessing, Stopped
from megatron_compete.data.preprocessing.output import Preprocessed
from megatron_compete.data.preprocessing.run import preprocess
from megatron_compete.data.tokenizer_flags import add_refused_flags, add_tokenizer_flags, take_tokenizer_choice

_SENTENCES = (
    "sentences are for BERT: split before, with NLTK for example, and give the sentences of a document as a list under "
    "its key"
)
_WORKERS = "shards are assigned to as many --workers as there are: try a few on a part of the corpus"

_REFUSED = {
    "--split-sentences": _SENTENCES,
    "--keep-newlines": _SENTENCES,
    "--lang": _SENTENCES,
    "--find-optimal-num-workers": _WORKERS,
    "--workers-to-check": _WORKERS,
    "--max-documents": f"it is part of --find-optimal-num-workers; {_WORKERS}",
    "--performance-dir": f"it is part of --find-optimal-num-workers; {_WORKERS}",
    "--keep-empty": "documents without tokens are kept unless --empty-documents reject is given",
    "--dataset-impl": "what is written is what Megatron calls mmap: leave it out",
}
"""Flags of Megatron-LM's tool, of today or of older scripts, that this one does not have."""

__all__ = ["Preprocessed", "Preprocessing", "main", "preprocess"]


def run(options: argparse.Namespace) -> None:
    """Preprocess and say what came of it.

    Raises:
        CompeteError: what the user can fix.
        SystemExit: 75 after SIGTERM or SIGUSR1.
        BrokenPipeError: nobody reads standard output any more.
    """
    job = job_of(vars(options))
    try:
        done = preprocess(job)
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        raise SystemExit(STOPPED_EXIT_CODE) from None
    except BrokenPipeError:
        print(
            "stopped, because nobody reads the progress on standard output any more: the same command goes on from the "
            "finished shards",
            file=sys.stderr,
            flush=True,
        )
        raise
    _print_summary(done)


def job_of(options: dict[str, Any]) -> Preprocessing:
    """The job that a command line describes."""
    _explain_partitions(options)
    options.setdefault("workers", default_workers())
    inputs, reading = take_input_options(options)
    return take_options(
        Preprocessing,
        options,
        inputs=inputs,
        reading=reading,
        tokenizer=take_tokenizer_choice(options),
        engine=options["tokenizer_engine"],
        engine_sample=options["tokenizer_engine_sample"],
    )


def _explain_partitions(options: dict[str, Any]) -> None:
    """Megatron-LM's flags that are taken and have nothing to do here."""
    partitions, sequential = options.pop("partitions"), options.pop("keep_sequential_samples")
    if partitions > 1 and not sequential:
        print(
            "--partitions is not needed: shards are assigned to --workers, and documents keep the order of the input (as "
            "with --keep-sequential-samples)",
            file=sys.stderr,
        )


def _print_summary(done: Preprocessed) -> None:
    for line in done.skips.report():
        print(line, file=sys.stderr)
    tokens = ", ".join(f"{count} tokens ({key})" for key, count in done.tokens.items())
    what = f"{', '.join(done.prefixes)}: {done.documents} documents, {tokens}"
    if done.empty:
        what += f", {done.empty} documents without tokens kept"
    if not done.seconds:
        print(f"{what} are there already, of the same input and flags: nothing to do (--restart makes them again)")
        return
    rate = f"at {done.text_bytes / MEGABYTE / done.seconds:.1f} MB/s" if not done.continued else "in several runs"
    print(f"wrote {what}, {done.text_bytes} bytes of text {rate}; {done.skips.summary()}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags: a job's, its input's and its tokenizer's, and what Megatron-LM's tool has besides."""
    data = parser.add_argument_group("data")
    add_input_flags(data)
    add_options(data, Preprocessing)
    tokenizer = parser.add_argument_group("tokenizer")
    add_tokenizer_flags(tokenizer)
    add_engine_flags(tokenizer)
    accepted = parser.add_argument_group("accepted from Megatron-LM's tool")
    accepted.add_argument("--partitions", type=int, default=1, help="has no effect")
    accepted.add_argument("--keep-sequential-samples", action="store_true", help="has no effect: it is always so")
    add_refused_flags(parser.add_argument_group("refused of Megatron-LM's tool"), _REFUSED)


def default_workers() -> int:
    """Usable cores, or 1 where several MPI ranks share a node."""
    return usable_cores() if mpi.has_node_to_itself() else 1


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


main = Command(
    name="preprocess",
    description="""Tokenise a corpus into Megatron's PREFIX_KEY_document.bin/.idx, with a manifest. Started by mpirun or
    srun, the ranks share the work.""",
    epilog="""A run that was killed, or stopped by SIGTERM or SIGUSR1 (exit code 75), is continued by the same command.
    Older output is replaced when the new one is complete. Progress goes to stdout.""",
    example="--input corpus --output-prefix data/corpus --append-eod \\\n"
    "    --tokenizer-type SentencePieceTokenizer --tokenizer-model data/tokenizer.model",
    add_arguments=add_arguments,
    run=run,
)
