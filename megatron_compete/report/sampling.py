"""Fewer points that look the same: extremes of a series stay, cells of a map are means.

N points of a series, R x C cells of a map.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def sample_extremes(x_N: Floats, y_N: Floats, limit: int) -> tuple[Floats, Floats]:
    """At most about `limit` of the points, in their order: of each of limit/2 windows the least and the greatest.

    The first and the last point stay, and where a window holds a NaN or an infinity, one of those stays too, as a gap. A
    plotted line is the same to a pixel, and a spike of one step is never lost.

    Returns:
        x and y of the points that stay; y is NaN where it was not finite.
    """
    finite_N = np.isfinite(y_N)
    if len(y_N) <= limit:
        return x_N, np.where(finite_N, y_N, np.nan)
    edges = np.linspace(0, len(y_N), max(2, limit // 2) + 1).astype(np.int64)[:-1]
    sizes = np.diff(np.append(edges, len(y_N)))
    kept = [
        _first_where(np.where(finite_N, y_N, fill) == np.repeat(extreme.reduceat(np.where(finite_N, y_N, fill), edges), sizes), edges)
        for extreme, fill in ((np.minimum, np.inf), (np.maximum, -np.inf))
    ]  # fmt: skip
    broken = _first_where(~finite_N, edges)
    chosen = np.unique(np.concatenate([*kept, broken, [0, len(y_N) - 1]]))
    return x_N[chosen], np.where(finite_N[chosen], y_N[chosen], np.nan)


def _first_where(holds_N: NDArray[np.bool_], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first place in each window at which something holds, of the windows in which it does."""
    places = np.where(holds_N, np.arange(len(holds_N)), len(holds_N))
    firsts = np.minimum.reduceat(places, edges)
    return firsts[firsts < len(holds_N)]


def first_of_runs(holds_N: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where each run of True begins."""
    return np.flatnonzero(holds_N & ~np.append(False, holds_N[:-1]))


def windows(x_N: Floats, y_N: Floats, limit: int) -> tuple[Floats, Floats, Floats, Floats]:
    """At most `limit` windows of equally many points: the middle's x, and the least, mean and greatest y that are finite."""
    edges = np.unique(np.linspace(0, len(y_N), min(limit, len(y_N)) + 1).astype(np.int64))[:-1]
    sizes = np.diff(np.append(edges, len(y_N)))
    finite_N = np.isfinite(y_N)
    counts = np.add.reduceat(finite_N, edges, dtype=np.int64)
    with np.errstate(invalid="ignore"):
        mean = np.where(
            counts > 0, np.add.reduceat(np.where(finite_N, y_N, 0.0), edges) / np.maximum(counts, 1), np.nan
        )
        least = np.where(counts > 0, np.minimum.reduceat(np.where(finite_N, y_N, np.inf), edges), np.nan)
        greatest = np.where(counts > 0, np.maximum.reduceat(np.where(finite_N, y_N, -np.inf), edges), np.nan)
    return x_N[edges + (sizes - 1) // 2], least, mean, greatest


def block_means(values_RC: Floats, rows: int, columns: int) -> Floats:
    """At most rows x columns cells: means over blocks of cells, without those that are not finite; NaN where none is."""
    finite = np.isfinite(values_RC)
    totals, counts = np.where(finite, values_RC, 0.0), finite.astype(np.float64)
    for axis, limit in ((0, rows), (1, columns)):
        size = values_RC.shape[axis]
        if size > limit:
            edges = np.linspace(0, size, limit + 1).astype(np.int64)[:-1]
            totals, counts = np.add.reduceat(totals, edges, axis=axis), np.add.reduceat(counts, edges, axis=axis)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)
