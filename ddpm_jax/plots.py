"""Pictures: uint8 arrays [h, w, 3], and the files made of them.

Samples are images [N, H, W, C], C = 1 or 3, or points [N, 2]; floats in [-1, 1]. A film is [frames, N, ...] of either.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddpm_jax import files
from ddpm_jax.images import to_uint8
from ddpm_jax.terminal import shown

GREY = 96  # of the lines between tiles
PICTURED = 256  # images of a picture, at most
FILMED = 16  # of an animation, at most
LETTERS = 16  # of a row's name, at most


def picture(samples: np.ndarray, kinds: int = 0, columns: int = 0, names: Sequence[str] = ()) -> np.ndarray:
    """A grid of images, of many the first 256, or a scatter plot of points.

    columns: the images of a row, for what was put together row by row; 0 for the squarest grid.
    kinds: where sample i is of kind i mod kinds, each kind has a row, unless there are fewer than two samples of each.
    names: those of the kinds, which are written beside their rows.
    """
    if samples.ndim == 2:
        return scatter(samples)
    images = to_uint8(samples[:PICTURED])
    if kinds < 2 or len(images) <= kinds:
        return image_grid(images, columns)
    columns = math.ceil(len(images) / kinds)
    blank = np.full((kinds * columns - len(images), *images.shape[1:]), GREY, np.uint8)
    by_column = np.concatenate([images, blank]).reshape(columns, kinds, *images.shape[1:])
    grid = image_grid(by_column.swapaxes(0, 1).reshape(-1, *images.shape[1:]), columns=columns)
    return np.concatenate([_margin(names, len(grid)), grid], axis=1) if names else grid


def _margin(names: Sequence[str], height: int) -> np.ndarray:
    """Names in black on white, evenly from above to below; long ones are cut."""
    from PIL import Image, ImageDraw, ImageFont

    names = [shown(name) for name in names]
    names = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…" for name in names]
    font, space = ImageFont.load_default(13), 5
    margin = Image.new("RGB", (math.ceil(max(map(font.getlength, names))) + 2 * space, height), "white")
    for i, name in enumerate(names):
        ImageDraw.Draw(margin).text((margin.width - space, (i + 0.5) * height / len(names)), name, "black", font, "rm")
    return np.asarray(margin)


def image_grid(images: np.ndarray, columns: int = 0, separator: int = 1, min_tile: int = 48) -> np.ndarray:
    """Tiles images [N, H, W, C] (uint8, C = 1 or 3), row by row, with grey lines between tiles.

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
    grid = np.full((rows * height + separator, columns * width + separator, 3), GREY, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * height + separator, index % columns * width + separator
        grid[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return grid


def scatter(points: np.ndarray, limit: float = 1.5, side: int = 320) -> np.ndarray:
    """Points [N, 2] in the square [-limit, limit]^2, y upwards, white to black by how many fall on a pixel."""
    column, row = ((np.asarray(points, np.float64).T * [[1], [-1]] + limit) / (2 * limit) * side).astype(int)
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    count = np.zeros((side, side))
    np.add.at(count, (row[inside], column[inside]), 1.0)
    count = sum(np.roll(count, (i, j), (0, 1)) for i in (0, 1) for j in (0, 1))  # a point covers two pixels each way
    return np.repeat((255 * 0.5**count).astype(np.uint8)[:, :, None], 3, axis=2)


def in_view(film: np.ndarray) -> np.ndarray:
    """The film, its frames divided by their root mean square where that is above 1: noise without bound becomes visible."""
    size = np.sqrt(np.square(film, dtype=np.float64).mean(axis=tuple(range(1, film.ndim)), keepdims=True))
    return (film / np.maximum(size, 1)).astype(film.dtype)


def filmstrip(film: np.ndarray, rows: int = 8, columns: int = 10) -> np.ndarray:
    """One row per image, at most `columns` of its frames from left to right; of points, one row of scatter plots."""
    film = film[np.unique(np.rint(np.linspace(0, len(film) - 1, min(columns, len(film)))).astype(int))]
    if film.ndim == 3:
        return image_grid(np.stack([scatter(points, side=160) for points in film]), columns=len(film))
    film = to_uint8(film[:, :rows])
    return image_grid(film.swapaxes(0, 1).reshape(-1, *film.shape[2:]), columns=len(film))


def save_png(path: str | Path, picture: np.ndarray, opens: files.Opens = files.whole) -> None:
    """The file appears whole or not at all."""
    from PIL import Image

    with opens(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


def save_gif(
    path: str | Path,
    film: np.ndarray,
    images: int = FILMED,
    milliseconds: int = 80,
    hold: int = 1500,
    opens: files.Opens = files.whole,
) -> None:
    """An endless animation of the film, the last frame held; of images, the first `images`."""
    from PIL import Image

    frames = [Image.fromarray(picture(frame if frame.ndim == 2 else frame[:images])) for frame in film]
    durations = [milliseconds] * (len(frames) - 1) + [hold]
    with opens(path) as file:
        frames[0].save(file, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)


def save_curve(path: str | Path, steps: list[int], losses: list[float]) -> None:
    """The loss over the steps, the loss axis logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="black", linewidth=1)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    with files.whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
