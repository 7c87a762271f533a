import numpy as np
import pytest
from PIL import Image

from megatron_compete.data.conversations.tiles import Grid, cut, grid_of, tile_count
from tests.data.conversations.tiny import picture


@pytest.mark.parametrize(
    ("width", "height", "max_tiles", "grid"),
    [
        (100, 100, 1, (1, 1)),
        (1000, 10, 1, (1, 1)),
        (200, 100, 6, (2, 1)),
        (100, 200, 6, (1, 2)),
        (300, 100, 6, (3, 1)),
        (1000, 10, 6, (6, 1)),
        (150, 100, 6, (3, 2)),
        (20, 20, 4, (1, 1)),  # 4 tiles of 16 x 16 would be more than half empty
        (30, 30, 4, (2, 2)),
        (30, 30, 9, (2, 2)),
        (64, 32, 8, (4, 2)),
        (20, 10, 8, (2, 1)),
    ],
)
def test_the_grid_has_the_image_s_shape(width: int, height: int, max_tiles: int, grid: tuple[int, int]) -> None:
    """By hand, with tiles of 16 x 16 pixels."""
    assert grid_of(width, height, 16, max_tiles) == grid


def test_no_grid_is_closer() -> None:
    draw = np.random.default_rng(0)
    for width, height, most in draw.integers(1, [700, 700, 13], (300, 3)).tolist():
        found = grid_of(width, height, 64, most)
        assert found.tiles <= most
        distances = [
            abs(width / height - c / r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most
        ]
        assert abs(width / height - found.columns / found.rows) == min(distances)


def test_tiles_lie_row_by_row_and_the_thumbnail_last() -> None:
    image = picture(96, 64)
    large = np.asarray(image.resize((48, 32)))
    tiles = cut(image, Grid(3, 2), 16, thumbnail=True)
    assert len(tiles) == tile_count(Grid(3, 2), True) == 7 and tile_count(Grid(3, 2), False) == 6
    rows = [np.concatenate([np.asarray(tile) for tile in tiles[row : row + 3]], axis=1) for row in (0, 3)]
    assert np.array_equal(np.concatenate(rows), large)
    assert np.array_equal(np.asarray(tiles[6]), np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)))
    assert len(cut(image, Grid(1, 1), 16, thumbnail=True)) == tile_count(Grid(1, 1), True) == 1
