"""Datasets and weights to what Megatron's --data-path takes, and what a run makes of them: epochs of every source.

    megatron-compete blend --input data/tokenised --temperature 2 --tokens 100e9 --output data/blend.args

A weight is the share of the run's samples that come from a source. Without weights it is the source's share of the
tokens, to the power 1 / temperature: 1 reads every source equally often, a higher temperature reads small ones more
often, up to equal weights.
"""

import fnmatch
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_compete.common.command_line import Command, option
from megatron_compete.common.errors import CompeteError
from megatron_compete.common.files import StagedFiles
from megatron_compete.data.dataset import Dataset, check_same_kind, find_prefixes, open_dataset

MIN_TEMPERATURE = 0.1
"""Below it the weights of small sources come to nothing."""


@dataclass(frozen=True)
class Source:
    """One dataset of a blend."""

    prefix: str
    documents: int
    tokens: int
    weight: float
    """Its share of the samples; all weights add up to 1."""

    def epochs(self, budget: float) -> float:
        """How often a run over `budget` tokens reads it."""
        return budget * self.weight / self.tokens


@dataclass(frozen=True)
class Blend:
    """Sources with their weights."""

    sources: tuple[Source, ...]
    without_manifest: tuple[str, ...]
    """Prefixes whose tokenizer could not be compared."""

    def arguments(self) -> list[str]:
        """What follows --data-path: weight and prefix of each source in turn."""
        return [word for source in self.sources for word in (f"{source.weight:.8g}", source.prefix)]


def make_blend(inputs: Sequence[str], weights: Sequence[str] = (), temperature: float = 1.0) -> Blend:
    """Weigh the datasets that `inputs` name.

    Args:
        inputs: prefixes, folders or patterns.
        weights: `NAME=WEIGHT` for every source, where NAME is its prefix, that without folders, or a pattern of either;
            a pattern's weight is shared by its sources in proportion to their tokens. Empty goes by temperature.
    Raises:
        CompeteError: damaged datasets, mixed dtypes or tokenizers, or weights that do not fit the sources.
    """
    if not MIN_TEMPERATURE <= temperature < math.inf:
        raise CompeteError(
            f"--temperature {temperature:g}: give {MIN_TEMPERATURE} or more; 1 is in proportion to the tokens"
        )
    datasets = [open_dataset(prefix) for prefix in find_prefixes(inputs)]
    _check(datasets)
    tokens = [dataset.index.tokens for dataset in datasets]
    raw = _given(datasets, tokens, weights) if weights else _by_temperature(tokens, temperature)
    return Blend(
        tuple(
            Source(dataset.prefix, dataset.index.documents, count, weight / sum(raw))
            for dataset, count, weight in zip(datasets, tokens, raw)
            if weight
        ),
        tuple(dataset.prefix for dataset in datasets if dataset.manifest is None),
    )


def _check(datasets: Sequence[Dataset]) -> None:
    for dataset in datasets:
        if not os.path.getsize(dataset.bin_path):
            raise CompeteError(f"{dataset.prefix} holds no tokens: leave it out")
        if any(character.isspace() for character in dataset.prefix):
            raise CompeteError(f"{dataset.prefix!r} has a space in its name, at which Megatron cuts: rename it")
        if dataset.index.dtype != datasets[0].index.dtype:
            raise CompeteError(
                f"{datasets[0].prefix} holds ids as {datasets[0].index.dtype.__name__} and {dataset.prefix} as "
                f"{dataset.index.dtype.__name__}: they are of different vocabularies and cannot be blended"
            )
    check_same_kind(datasets, "blended")


def _by_temperature(tokens: Sequence[int], temperature: float) -> list[float]:
    largest = math.log(max(tokens))
    return [math.exp((math.log(count) - largest) / temperature) for count in tokens]


def _given(datasets: Sequence[Dataset], tokens: Sequence[int], weights: Sequence[str]) -> list[float]:
    """The weight of each dataset; every one must be named by exactly one entry."""
    found: list[float | None] = [None] * len(datasets)
    for entry in weights:
        name, weight = _parse_weight(entry)
        matches = [index for index, dataset in enumerate(datasets) if _is_named(dataset.prefix, name)]
        if not matches:
            raise CompeteError(f"--weights {entry}: no source has this name")
        share = weight / sum(tokens[index] for index in matches)
        for index in matches:
            if found[index] is not None:
                raise CompeteError(f"--weights {entry}: {datasets[index].prefix} has a weight already")
            found[index] = share * tokens[index]
    for dataset, one in zip(datasets, found):
        if one is None:
            raise CompeteError(f"--weights: {dataset.prefix} has none; give 0 to leave it out")
    given = [one for one in found if one is not None]
    if not sum(given):
        raise CompeteError("--weights: all are 0")
    return given


def _parse_weight(entry: str) -> tuple[str, float]:
    name, _, text = entry.rpartition("=")
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not name or not 0 <= weight < math.inf:
        raise CompeteError(f"--weights {entry}: write NAME=WEIGHT, with a weight of 0 or more")
    return name, weight


def _is_named(prefix: str, name: str) -> bool:
    return any(text == name or fnmatch.fnmatchcase(text, name) for text in (prefix, os.path.basename(prefix)))


def table_lines(blend: Blend, budget: float | None) -> list[str]:
    """The sources as a table; tokens drawn and epochs with a budget."""
    width = max(len("source"), *(len(source.prefix) for source in blend.sources))
    head = f"{'source':<{width}} {'documents':>12} {'tokens':>15} {'weight':>8}"
    lines = [head + (f" {'tokens drawn':>15} {'epochs':>7}" if budget is not None else "")]
    for source in blend.sources:
        line = f"{source.prefix:<{width}} {source.documents:>12} {source.tokens:>15} {source.weight:>8.4f}"
        if budget is not None:
            line += f" {round(budget * source.weight):>15} {source.epochs(budget):>7.2f}"
        lines.append(line)
    documents, tokens = (sum(getattr(source, name) for source in blend.sources) for name in ("documents", "tokens"))
    total = f"{'all':<{width}} {documents:>12} {tokens:>15} {1:>8.4f}"
    lines.append(total + (f" {round(budget):>15} {budget / tokens:>7.2f}" if budget is not None else ""))
    return lines


def write_arguments(blend: Blend, path: str) -> None:
    """A file for Megatron's --data-args-path: a source a line."""
    words = blend.arguments()
    try:
        with StagedFiles() as staged:
            with open(staged.path(path), "w", encoding="utf-8") as stream:
                stream.writelines(f"{weight} {prefix}\n" for weight, prefix in zip(words[::2], words[1::2]))
            staged.commit()
    except OSError as error:
        raise CompeteError(f"--output {path}: {error.strerror or error}") from None


@dataclass(frozen=True)
class BlendOptions:
    """The command's flags."""

    input: tuple[str, ...] = option(metavar="PATH", help="prefixes, folders or glob patterns")
    weights: tuple[str, ...] = option((), metavar="NAME=WEIGHT", help="for every source; NAME may be a pattern")
    temperature: float | None = option(
        None, metavar="T", help="weights are tokens^(1/T), scaled to 1 (default: 1, without --weights)"
    )
    output: str | None = option(
        None, metavar="FILE", help="write the arguments for --data-args-path instead of printing them"
    )
    tokens: float | None = option(None, metavar="N", help="of the whole run, 100e9 for example")
    train_iters: int | None = option(None, help="length of the run, in place of --tokens, with the two below")
    global_batch_size: int | None = option(None, help="as the run has it")
    seq_length: int | None = option(None, help="as the run has it")

    def __post_init__(self) -> None:
        if self.weights and self.temperature is not None:
            raise CompeteError("--weights and --temperature both say how sources are weighed: give one of them")


def token_budget(options: BlendOptions) -> float | None:
    """Tokens of the run: --tokens, or iterations x batch x sequence length; None without either.

    Raises:
        CompeteError: both, or a part of the second.
    """
    run = {
        "--train-iters": options.train_iters,
        "--global-batch-size": options.global_batch_size,
        "--seq-length": options.seq_length,
    }
    given = {flag: value for flag, value in run.items() if value is not None}
    if options.tokens is not None and given:
        raise CompeteError(f"--tokens and {next(iter(given))} both say how long the run is: give one of them")
    for flag, value in {"--tokens": options.tokens, **run}.items():
        if value is not None and not 0 < value < math.inf:
            raise CompeteError(f"{flag} {value:g}: give a number above 0")
    if not given:
        return options.tokens
    if len(given) < len(run):
        missing = next(flag for flag in run if flag not in given)
        raise CompeteError(
            f"{next(iter(given))} without {missing}: the run's tokens are iterations x batch x sequence length"
        )
    return float(math.prod(given.values()))


def run(options: BlendOptions) -> None:
    """Weigh the sources and show what a run makes of them."""
    budget = token_budget(options)
    blend = make_blend(options.input, options.weights, 1.0 if options.temperature is None else options.temperature)
    print("\n".join(table_lines(blend, budget)))
    if blend.without_manifest:
        print(f"without a manifest, tokenizer not compared: {', '.join(blend.without_manifest)}")
    if options.output is not None:
        write_arguments(blend, options.output)
        print(f"--data-args-path {options.output}")
    else:
        print(f"--data-path {' '.join(blend.arguments())}")


main = Command(
    name="blend",
    description="Weigh datasets for --data-path, and see how often a run reads each.",
    epilog="Epochs are over the whole source: with --split 99,1,0, training reads its 99% 1.01 times as often.",
    example="--input data/tokenised --temperature 2 --tokens 100e9 --output data/blend.args",
    options=BlendOptions,
    run=run,
)
