"""A corpus to Megatron's `.bin/.idx`, byte for byte what Megatron-LM's tools/preprocess_data.py writes.

    python tools/preprocess_data.py --input corpus --output-prefix data/corpus --append-eod --workers 8 \\
        --tokenizer-type SentencePieceTokenizer --tokenizer-model data/tokenizer.model

writes `data/corpus_text_document.bin`, `.idx` and `.json` (the manifest). They appear when all of them are complete,
and replace older ones only then. Started by `mpirun` or `srun --mpi=...`, the ranks share the work. Until the output is
complete, finished shards lie in `data/corpus.work`: after a kill or a stop the same command goes on from them.
`preprocessing/` does the work; this is the command line.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from megatron_compete.common.progress import MEGABYTE
from megatron_compete.data.bad_documents import ON_ERROR_CHOICES
from megatron_compete.data.engines import add_engine_flags
from megatron_compete.data.inputs.options import add_input_flags, take_input_options
from megatron_compete.data.preprocessing import mpi
from megatron_compete.data.preprocessing.job import EMPTY_DOCUMENTS, STOPPED_EXIT_CODE, Preprocessing, Stopped
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


def main(argv: Sequence[str] | None = None) -> None:
    """`tools/preprocess_data.py`.

    Raises:
        CompeteError: what the user can fix.
        SystemExit: 75 after SIGTERM or SIGUSR1.
        BrokenPipeError: nobody reads standard output any more.
    """
    job = parse(argv)
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


def parse(argv: Sequence[str] | None = None) -> Preprocessing:
    """The job that a command line describes."""
    options = vars(_parser().parse_args(argv))
    _explain_partitions(options)
    choice = take_tokenizer_choice(options)
    assert choice is not None  # --tokenizer-type is required
    inputs, reading = take_input_options(options)
    options["json_keys"] = tuple(options["json_keys"])
    options["engine"] = options.pop("tokenizer_engine")
    options["engine_sample"] = options.pop("tokenizer_engine_sample")
    if "shard_size" in options:
        options["shard_bytes"] = max(0, round(options.pop("shard_size") * MEGABYTE))
    return Preprocessing(inputs=inputs, tokenizer=choice, reading=reading, **options)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Tokenise a corpus into Megatron's PREFIX_KEY_document.bin/.idx, with a manifest.",
        epilog="A run that was killed, or stopped by SIGTERM or SIGUSR1 (exit code 75), is continued by the same "
        "command. Older output is replaced when the new one is complete. Progress goes to stdout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_data_flags(parser.add_argument_group("data"))
    tokenizer = parser.add_argument_group("tokenizer")
    add_tokenizer_flags(tokenizer)
    add_engine_flags(tokenizer)
    _add_run_flags(parser.add_argument_group("run"))
    _add_megatron_flags(parser.add_argument_group("accepted from Megatron-LM's tool"))
    add_refused_flags(parser.add_argument_group("refused of Megatron-LM's tool"), _REFUSED)
    return parser


def _add_data_flags(group: argparse._ArgumentGroup) -> None:
    flag, no_default = group.add_argument, argparse.SUPPRESS
    add_input_flags(group)
    flag("--output-prefix", required=True, metavar="PREFIX", default=no_default, help="where to write, without suffix")
    flag("--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys, or columns, that become a dataset each")
    flag("--append-eod", action="store_true", help="end every document with the end-of-document id")
    flag("--on-error", choices=ON_ERROR_CHOICES, default="fail", help="at a bad document: stop, or list it and go on")
    flag(
        "--empty-documents",
        choices=EMPTY_DOCUMENTS,
        default="keep",
        help="without tokens: keep as an empty document, as Megatron-LM's tool does, or take it for a bad one",
    )


def _add_run_flags(group: argparse._ArgumentGroup) -> None:
    flag, no_default = group.add_argument, argparse.SUPPRESS
    flag(
        "--workers",
        type=int,
        default=default_workers(),
        help="processes that tokenise, on each MPI rank; as many as there are usable cores, or 1 where ranks share a "
        "node",
    )
    flag(
        "--log-interval",
        type=int,
        metavar="DOCUMENTS",
        default=no_default,
        help="documents between two progress lines, in place of a minute",
    )
    flag(
        "--shard-size",
        type=float,
        metavar="MB",
        default=no_default,
        help="input of one shard (default: 1 to 32 MB, by the size of the corpus)",
    )
    flag("--restart", action="store_true", help="begin again, whatever an earlier run left or finished")


def _add_megatron_flags(group: argparse._ArgumentGroup) -> None:
    flag = group.add_argument
    flag("--partitions", type=int, default=1, help="has no effect")
    flag("--keep-sequential-samples", action="store_true", help="has no effect: it is always so")


def default_workers() -> int:
    """Usable cores, or 1 where several MPI ranks share a node."""
    return usable_cores() if mpi.has_node_to_itself() else 1


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
