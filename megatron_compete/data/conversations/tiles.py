"""Which grid an image is cut into, as Megatron-LM's multimodal example and InternVL before it have it: the one whose shape
is closest to the image's, up to a number of tiles; of equally close ones the larger, where the image fills half of it."""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image


class Grid(NamedTuple):
    """Tiles of an image."""

    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        """Number of them."""
        return self.columns * self.rows


@cache
def _grids(max_tiles: int) -> list[Grid]:
    """All grids, smaller ones first."""
    grids = [Grid(columns, rows) for columns in range(1, max_tiles + 1) for rows in range(1, max_tiles // columns + 1)]
    return sorted(grids, key=lambda grid: (grid.tiles, grid))


def grid_of(width: int, height: int, side: int, max_tiles: int) -> Grid:
    """The grid for an image.

    Args:
        side: pixels of a tile's side.
    """
    best, best_distance = Grid(1, 1), float("inf")
    for grid in _grids(max_tiles):
        distance = abs(width / height - grid.columns / grid.rows)
        fills_half = width * height > 0.5 * side * side * grid.tiles
        if distance < best_distance or (distance == best_distance and fills_half):
            best, best_distance = grid, distance
    return best


def tile_count(grid: Grid, thumbnail: bool) -> int:
    """Tiles that an image becomes, with the thumbnail that stands behind several."""
    return grid.tiles + (thumbnail and grid.tiles > 1)


def cut(image: "Image", grid: Grid, side: int, thumbnail: bool) -> "list[Image]":
    """The tiles of an image, row by row, and the thumbnail."""
    large = image.resize((grid.columns * side, grid.rows * side))
    corners = [(column * side, row * side) for row in range(grid.rows) for column in range(grid.columns)]
    tiles = [large.crop((left, top, left + side, top + side)) for left, top in corners]
    return tiles + ([image.resize((side, side))] if thumbnail and grid.tiles > 1 else [])
