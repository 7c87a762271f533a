#!/usr/bin/env python3
"""Preprocessing beside the loop that Megatron-LM's tool runs: speed per core, scaling, memory.

    python benchmarks/preprocess.py --megabytes 100

Everything is measured in one run, in processes forked from one that has imported everything, and the output of every
measurement is compared with the plain loop's. The choice of an engine is made once and not counted.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.corpora import FORMS, write_corpus
from benchmarks.summary import hardware
from megatron_compete.data.engines import ENGINE_CHOICES, EngineChoice, choose_engine
from megatron_compete.data.inputs import find_sources, sample_texts
from megatron_compete.data.megatron_tokenizer import TokenizerChoice
from megatron_compete.data.preprocess import Preprocessing, preprocess
from megatron_compete.data.preprocessing import run as run_module
from megatron_compete.data.tokenizer import TokenizerTraining, train_tokenizer

PLAIN = "plain loop"
CHUNK_LINES = 32
"""Lines that Megatron-LM's tool hands to a worker together."""

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Measurement:
    """One run of one variant."""

    variant: str
    workers: int
    text_bytes: int
    seconds: float
    cpu_seconds: float
    """Of all its processes."""

    peak_bytes: int
    """Most memory that its processes had to themselves, together."""

    @property
    def speed(self) -> float:
        """MB/s by the clock."""
        return self.text_bytes / 1e6 / self.seconds

    @property
    def core_speed(self) -> float:
        """MB for a second of processor time."""
        return self.text_bytes / 1e6 / self.cpu_seconds


class _Plain:
    """One `json.loads` and one tokenizer call a document, in a pool, as in Megatron-LM's tools/preprocess_data.py."""

    tokenizer: Any

    @classmethod
    def start(cls, choice: TokenizerChoice) -> None:
        cls.tokenizer = choice.build()

    @classmethod
    def encode(cls, line: str) -> list[int]:
        ids = list(cls.tokenizer.tokenize(json.loads(line)["text"]))
        return [*ids, cls.tokenizer.eod] if ids else ids


def run_plain(choice: TokenizerChoice, corpus: Path, prefix: Path, workers: int) -> None:
    """The whole of the plain loop."""
    vocab_size = choice.build().vocab_size
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    with multiprocessing.get_context("fork").Pool(workers, _Plain.start, (choice,)) as pool:
        with open(corpus, encoding="utf-8") as stream:
            for ids in pool.imap(_Plain.encode, stream, CHUNK_LINES):
                builder.add_document(ids, [len(ids)] if ids else [])
        pool.close()
        pool.join()
    builder.finalize(f"{prefix}.idx")


def run_ours(job: Preprocessing, engine: EngineChoice) -> None:
    """The whole of `preprocess`, with the engine chosen beforehand."""
    with (
        mock.patch.object(run_module, "choose_engine", return_value=engine),
        mock.patch.object(run_module, "sample_texts", return_value=[]),
    ):
        preprocess(job)


def measure(variant: str, workers: int, text_bytes: int, action: Callable[[], None]) -> Measurement:
    """Run `action` in a forked process and watch it."""
    results = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=_timed, args=(action, results))
    process.start()
    peak = 0
    while process.is_alive():
        peak = max(peak, _private_bytes(process.pid or 0))
        process.join(POLL_SECONDS)
    if process.exitcode != 0:
        raise RuntimeError(f"{variant} with {workers} workers ended with code {process.exitcode}")
    return Measurement(variant, workers, text_bytes, *results.get(), peak)


def _timed(action: Callable[[], None], results: Any) -> None:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    began = time.monotonic()
    action()
    seconds = time.monotonic() - began
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    results.put((seconds, sum(usage.ru_utime + usage.ru_stime for usage in usages)))


def _private_bytes(pid: int) -> int:
    """Memory that a process and its children share with nobody."""
    total = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().uss
    except psutil.Error:  # it ended meanwhile
        pass
    return total


@dataclass(frozen=True)
class Bench:
    """What is measured, and where."""

    folder: Path
    choice: TokenizerChoice
    engines: dict[str, EngineChoice]
    repeats: int

    def compare(self, corpora: dict[str, Path], workers: list[int]) -> Iterator[Measurement]:
        """All variants on the same documents, interleaved; the plain loop first in every round.

        Raises:
            RuntimeError: an output differs from the plain loop's.
        """
        plain = corpora["jsonl"]
        size = plain.stat().st_size
        for _ in range(self.repeats):
            for count in workers:
                action = partial(run_plain, self.choice, plain, self.folder / "plain", count)
                yield measure(PLAIN, count, size, action)
                for form, corpus in corpora.items():
                    for name in self.engines if form == "jsonl" else list(self.engines)[-1:]:
                        yield self._measure_ours(f"{form}, {name}", name, corpus, count, size)

    def _measure_ours(self, variant: str, engine: str, corpus: Path, workers: int, size: int) -> Measurement:
        prefix = self.folder / "ours"
        job = Preprocessing(
            (str(corpus),), str(prefix), self.choice, append_eod=True, workers=workers, engine=engine, restart=True
        )
        found = measure(variant, workers, size, partial(run_ours, job, self.engines[engine]))
        for suffix in (".bin", ".idx"):
            ours, plain = Path(f"{prefix}_text_document{suffix}"), self.folder / f"plain{suffix}"
            if ours.read_bytes() != plain.read_bytes():
                raise RuntimeError(f"{variant} with {workers} workers: {ours} is not {plain}")
        return found

    def memory(self, megabytes: int, copies: list[int]) -> Iterator[Measurement]:
        """The last engine with 2 workers on so many copies of one corpus."""
        name, corpus = list(self.engines)[-1], write_corpus(self.folder / "once", megabytes * 1_000_000)["jsonl"]
        for count in copies:
            folder = self.folder / f"copies-{count}"
            folder.mkdir()
            for copy in range(count):
                os.link(corpus, folder / f"{copy}.jsonl")
            prefix = str(self.folder / "memory")
            job = Preprocessing((str(folder),), prefix, self.choice, workers=2, engine=name, restart=True)
            yield measure(name, 2, count * corpus.stat().st_size, partial(run_ours, job, self.engines[name]))


def table(found: list[Measurement]) -> Table:
    """Medians over repeats, and ratios to the plain loop with as many workers."""
    result = Table(title=f"Preprocessing\n{hardware()}", title_justify="left")
    for name in (
        "variant",
        "workers",
        "s",
        "MB/s",
        "MB per CPU s",
        "MB/s, x plain",
        "per CPU s, x plain",
        "x 1 worker",
    ):
        result.add_column(name, justify="left" if name == "variant" else "right")
    medians = {key: _medians(found, *key) for key in dict.fromkeys((one.variant, one.workers) for one in found)}
    first = min(workers for _, workers in medians)
    for (variant, workers), (speed, core_speed) in medians.items():
        plain = medians[PLAIN, workers]
        seconds = statistics.median(one.seconds for one in found if (one.variant, one.workers) == (variant, workers))
        ratios = (speed / plain[0], core_speed / plain[1], speed / medians[variant, first][0])
        cells = (f"{seconds:.1f}", f"{speed:.1f}", f"{core_speed:.1f}", *(f"{ratio:.2f}" for ratio in ratios))
        result.add_row(variant, str(workers), *cells)
    return result


def _medians(found: list[Measurement], variant: str, workers: int) -> tuple[float, float]:
    chosen = [one for one in found if (one.variant, one.workers) == (variant, workers)]
    return statistics.median(one.speed for one in chosen), statistics.median(one.core_speed for one in chosen)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Preprocessing beside Megatron-LM's loop; checks equal output.")
    flag = parser.add_argument
    flag("--megabytes", type=int, default=100, help="size of the corpus (default: 100)")
    flag("--forms", nargs="+", choices=FORMS, default=["jsonl", "jsonl.zst", "parquet"])
    flag("--engines", nargs="+", choices=ENGINE_CHOICES, default=["reference", "auto"])
    flag("--workers", nargs="+", type=int, default=[1, 2])
    flag("--repeats", type=int, default=3)
    flag("--memory", type=int, default=400, metavar="MB", help="corpus to state the peak for, once and four times over")
    flag("--tokenizer-model", help="a SentencePiece model (default: BPE of 8000 pieces, trained on the corpus)")
    flag("--json", type=Path, help="write all measurements")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _run(arguments, Path(folder))


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    forms = ("jsonl", *(form for form in arguments.forms if form != "jsonl"))
    corpora = write_corpus(folder / "corpus", arguments.megabytes * 1_000_000, forms)
    model = arguments.tokenizer_model or _train(folder, corpora["jsonl"])
    choice = TokenizerChoice("SentencePieceTokenizer", model)
    sample, tokenizer = sample_texts(find_sources([str(corpora["jsonl"])]), ["text"], 4_000_000), choice.build()
    engines = {name: choose_engine(choice, name, tokenizer, sample) for name in arguments.engines}
    console = Console(highlight=False, width=120)
    for engine in engines.values():
        console.print(engine.describe())
    bench = Bench(folder, choice, engines, arguments.repeats)
    found = list(bench.compare(corpora, arguments.workers))
    console.print(table(found))
    console.print("every output equals the plain loop's, byte for byte")
    peaks = list(bench.memory(arguments.memory, [1, 4]))
    for one in peaks:
        size, peak = one.text_bytes / 1e6, one.peak_bytes / 1e6
        console.print(f"{size:.0f} MB with 2 workers: 3 processes have up to {peak:.0f} MB of memory to themselves")
    if arguments.json:
        report = {"hardware": hardware(), "runs": [asdict(one) for one in found + peaks]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def _train(folder: Path, corpus: Path) -> str:
    return train_tokenizer(TokenizerTraining((str(corpus),), str(folder / "tokenizer"), 8000)).model_path


if __name__ == "__main__":
    main()
