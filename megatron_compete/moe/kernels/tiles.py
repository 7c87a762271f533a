"""Sizes of the kernels' tiles, by shape class: all of them in one table.

The first candidate of a class is used. There is no tuning at run time: ranks, or a run and its resumption, could then
pick different sizes and add in another order, and a winner could change. `benchmarks/scoring.py --tune` measures the
candidates on the GPU at hand and says which should be first.

Sizes are for Hopper: wgmma takes 64 rows a warp group (4 warps), an SM has 65,536 registers and 227 KB of shared memory.
An fp32 sum of M x N takes M * N / threads registers of at most 255 a thread; a stage of a GEMM (M + N) * K elements.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class NarrowTiles:
    """Sizes of `narrow.narrow_kernel`."""

    tokens: int = 128
    k: int = 64
    """Columns of tokens and fc1 at a time."""
    columns: int = 128
    """Output columns of fc2 at a time."""
    warps: int = 8
    fc1_stages: int = 3
    fc2_stages: int = 2
    group: int = 64
    """Token tiles that go through all experts before the next ones; bounds what L2 must hold."""


@dataclass(frozen=True)
class GemmTiles:
    """Sizes of one of the two kernels in `wide.py`; `columns` of fc1 count twice where it is gated."""

    tokens: int = 128
    columns: int = 128
    k: int = 64
    warps: int = 8
    stages: int = 3
    group: int = 8
    """Token tiles between which a weight tile stays in L2."""


@dataclass(frozen=True)
class WideTiles:
    """Sizes of `wide.py`."""

    fc1: GemmTiles
    fc2: GemmTiles


NARROW = {
    128: (NarrowTiles(), NarrowTiles(warps=4), NarrowTiles(columns=64, fc2_stages=3), NarrowTiles(tokens=256, fc1_stages=2)),
    256: (
        NarrowTiles(columns=64, fc2_stages=3),
        NarrowTiles(fc2_stages=2),
        NarrowTiles(tokens=64, columns=64, warps=4, fc1_stages=2),
        NarrowTiles(tokens=64, columns=64, warps=4),
    ),
    512: (NarrowTiles(tokens=64, columns=64), NarrowTiles(tokens=64, columns=64, fc1_stages=2)),
}  # fmt: skip
"""Candidates by columns of fc1 that a program holds: 128 has two programs on an SM, so that one's tensor cores work while
the other's response is computed."""

NARROW_FP8 = {
    128: (NarrowTiles(k=128, fc2_stages=3), NarrowTiles(k=128, warps=4), NarrowTiles(k=64, fc1_stages=4)),
    256: (NarrowTiles(k=128), NarrowTiles(k=128, columns=64, fc2_stages=3), NarrowTiles(tokens=64, columns=64, k=128, warps=4)),
    512: (NarrowTiles(tokens=64, columns=64, k=64), NarrowTiles(tokens=64, columns=64, k=128, fc1_stages=2)),
}  # fmt: skip

FC1_GATED = (
    GemmTiles(),
    GemmTiles(stages=4),
    GemmTiles(tokens=64, warps=4, stages=3),
    GemmTiles(tokens=256, columns=64),
)
FC1_PLAIN = (GemmTiles(columns=256), GemmTiles(columns=256, stages=4), GemmTiles(tokens=256), GemmTiles(stages=4))
FC2 = (GemmTiles(tokens=256), GemmTiles(tokens=256, stages=4), GemmTiles(stages=4), GemmTiles(warps=4, stages=4))
FC1_GATED_FP8 = (GemmTiles(k=128), GemmTiles(k=128, stages=4), GemmTiles(k=64, stages=4))
FC1_PLAIN_FP8 = (GemmTiles(columns=256, k=128), GemmTiles(columns=256, k=128, stages=4), GemmTiles(k=128, stages=4))
FC2_FP8 = (GemmTiles(tokens=256, k=128), GemmTiles(tokens=256, k=128, stages=4), GemmTiles(k=128, stages=4))
"""Candidates of fc1, gated or not, and fc2; the same bytes a stage in FP8 with twice the columns."""


def narrow_candidates(block_columns: int, fp8: bool) -> tuple[NarrowTiles, ...]:
    """Sizes for a program that holds `block_columns` columns of fc1 (gate and up both count)."""
    table = NARROW_FP8 if fp8 else NARROW
    return next(candidates for limit, candidates in table.items() if block_columns <= limit)


def fc1_candidates(gated: bool, fp8: bool) -> tuple[GemmTiles, ...]:
    """Sizes of the wide experts' fc1."""
    if fp8:
        return FC1_GATED_FP8 if gated else FC1_PLAIN_FP8
    return FC1_GATED if gated else FC1_PLAIN


def fc2_candidates(fp8: bool) -> tuple[GemmTiles, ...]:
    """Sizes of the wide experts' fc2."""
    return FC2_FP8 if fp8 else FC2


def wide_tiles(gated: bool, fp8: bool) -> WideTiles:
    """The sizes in use."""
    return WideTiles(fc1_candidates(gated, fp8)[0], fc2_candidates(fp8)[0])


def for_projection(sizes: NarrowTiles | WideTiles, fp8: bool) -> NarrowTiles | WideTiles:
    """These sizes where the response is y . v.

    A tile of v stands in registers beside that of y: with the others' sizes fc2 would spill 200 bytes a thread, and a
    narrow expert of the 154M model take 232 registers, so that one program fits an SM in place of two
    (`benchmarks/kernel_resources.py --response projection`).
    """
    if isinstance(sizes, NarrowTiles):
        return replace(sizes, columns=min(64, sizes.columns))
    return replace(sizes, fc2=GemmTiles(k=128, stages=4) if fp8 else GemmTiles(columns=256))
