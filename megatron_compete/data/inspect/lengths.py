"""How long a dataset's documents are: a histogram by powers of two, as text and as a figure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from megatron_compete.common.errors import CompeteError
from megatron_compete.data.index_file import CHUNK, IndexFile

_BINS = 64
_BAR_CHARACTERS = 40


@dataclass(frozen=True)
class Lengths:
    """Documents and tokens by length; bin b holds documents of 2^(b-1) to 2^b - 1 tokens, bin 0 those without."""

    documents: np.ndarray
    """Documents in each bin, int64 [64]."""

    tokens: np.ndarray
    """Their tokens, int64 [64]."""

    shortest: int
    longest: int

    @property
    def mean(self) -> float:
        """Tokens a document."""
        return float(self.tokens.sum()) / max(int(self.documents.sum()), 1)

    def bins(self) -> Iterator[tuple[str, int, int]]:
        """Name, documents and tokens of each bin from the first to the last that is not empty."""
        used = np.flatnonzero(self.documents)
        for index in range(used[0], used[-1] + 1) if used.size else ():
            low, high = (1 << index) >> 1, (1 << index) - 1
            name = str(low) if low >= high else f"{low}-{high}"
            yield name, int(self.documents[index]), int(self.tokens[index])


def measure_lengths(index: IndexFile) -> Lengths:
    """Count all documents, `CHUNK` at a time."""
    starts = range(0, index.documents, CHUNK)
    return count_lengths(index.document_tokens(start, min(start + CHUNK, index.documents)) for start in starts)


def count_lengths(parts: Iterable[np.ndarray]) -> Lengths:
    """Count lengths that come in arrays, none of them empty."""
    documents, tokens = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
    shortest, longest = None, 0
    for lengths in parts:
        bins = np.frexp(lengths.astype(np.float64))[1]
        documents += np.bincount(bins, minlength=_BINS)
        tokens += np.array([int(lengths[bins == one].sum()) for one in range(_BINS)])
        shortest = int(lengths.min()) if shortest is None else min(shortest, int(lengths.min()))
        longest = max(longest, int(lengths.max()))
    return Lengths(documents, tokens, shortest or 0, longest)


def histogram_lines(lengths: Lengths, items: str = "documents", parts: str = "tokens") -> list[str]:
    """The histogram for a terminal: a line a bin, of `items` by their number of `parts`."""
    bins = list(lengths.bins())
    most = max((documents for _, documents, _ in bins), default=1)
    all_tokens = max(int(lengths.tokens.sum()), 1)
    lines = [f"{parts:>21} {items:>12} {f'of {parts}':>9}"]
    for name, documents, tokens in bins:
        bar = "#" * round(_BAR_CHARACTERS * documents / most)
        lines.append(f"{name:>21} {documents:>12} {tokens / all_tokens:>9.1%} {bar}".rstrip())
    return lines


def write_figure(lengths: Lengths, title: str, path: str) -> None:
    """Shares of documents and of tokens by document length, as bars.

    Raises:
        CompeteError: matplotlib is not installed, or the path cannot be written to.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CompeteError("--figure needs matplotlib: pip install matplotlib") from None

    bins = list(lengths.bins())
    places = np.arange(len(bins))
    figure = Figure(figsize=(max(6.0, 0.55 * len(bins) + 2), 4), layout="constrained")
    axes = figure.add_subplot()
    for offset, column, label in ((-0.2, 1, "documents"), (0.2, 2, "tokens")):
        values = np.array([one[column] for one in bins], dtype=np.float64)
        axes.bar(places + offset, 100 * values / max(values.sum(), 1), width=0.4, label=label)
    axes.set_xticks(places, [name for name, _, _ in bins], rotation=45, ha="right")
    axes.set(xlabel="tokens in a document", ylabel="share, %", title=title)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise CompeteError(f"--figure {path}: {error}") from None
