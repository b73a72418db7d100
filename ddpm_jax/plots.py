"""Pictures."""

import math
from pathlib import Path

import numpy as np


def image_grid(images: np.ndarray, columns: int = 0, separator: int = 1, min_tile: int = 48) -> np.ndarray:
    """Tiles images [N, H, W, C] (uint8, C = 1 or 3) into one picture [h, w, 3], row by row, with grey lines between tiles.

    columns: 0 for the squarest grid. Tiles smaller than min_tile pixels are enlarged by a whole factor.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be uint8 [N, H, W, 1 or 3], found {images.dtype} {list(images.shape)}")
    count, height, width, _ = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil(min_tile / max(height, width)))
    separator *= max(1, scale // 2)
    tiles = np.broadcast_to(images, (count, height, width, 3)).repeat(scale, 1).repeat(scale, 2)
    height, width = height * scale + separator, width * scale + separator
    grid = np.full((rows * height + separator, columns * width + separator, 3), 96, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height + separator, index % columns * width + separator
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid


def save_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture [h, w, 3], uint8. The file appears whole or not at all."""
    from PIL import Image

    temporary = path.with_suffix(".tmp")
    Image.fromarray(picture).save(temporary, format="PNG")
    temporary.replace(path)
