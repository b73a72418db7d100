"""Inpainting of given images by a trained run: what is given, and its picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import files, images, plots
from ddpm_jax.construct import construct
from ddpm_jax.data import folder
from ddpm_jax.diffusion.inverse import INPAINTING, known_x0
from ddpm_jax.diffusion.predictions import Denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.samplers import Sampler
from ddpm_jax.errors import UserError, tell_machine

ROWS, COLUMNS = 32, 8  # images of a picture, and results for each, at most


class Given(NamedTuple):
    """images [N, H, W, C] in [-1, 1]; known [H, W, 1 or C], True where their pixels are known. Sample i is of image i mod N."""

    images: Any
    known: Any


def given(pictures: np.ndarray, mask: np.ndarray, image_shape: tuple[int, ...], name: str = "The mask") -> Given:
    """Of images [N, H, W, C], uint8 or in [-1, 1], and a mask [H, W] or [H, W, 1 or C]: True or 1 where pixels are known, or
    uint8 grey levels, known from 128 on.

    Raises UserError, which calls the mask by its name, where the run has other images, and for a mask of another size, of other
    values, or without known or unknown pixels.
    """
    mask = np.asarray(mask)
    if len(image_shape) != 3:
        raise UserError(f"Inpainting is for images, and this run has data of shape {list(image_shape)}: take a run of images.")
    pictures = images.checked(pictures, image_shape, "The images to inpaint")
    known = mask if mask.ndim == 3 else mask[..., None]
    if known.shape not in (image_shape, (*image_shape[:2], 1)):
        raise UserError(
            f"The mask must be of the images' size, {image_shape[0]} x {image_shape[1]}, found an array of {list(mask.shape)}."
        )
    if known.dtype == np.uint8 and known.max() > 1:
        known = known >= 128
    numbers = known.dtype.kind in "biuf"
    if not numbers or not np.isin(known, (0, 1)).all():
        raise UserError(
            f"{name} must be 1 (or True) where pixels are known and 0 where they are to be drawn anew, or uint8 grey levels, "
            f"found {known.dtype}{f' from {known.min()} to {known.max()}' if numbers else ''}: give mask > 0, say."
        )
    known = known.astype(bool)
    if known.all() or not known.any():
        raise UserError(
            f"{name} is {'white (1)' if known.all() else 'black (0)'} all over. Known pixels are white, and those to be drawn "
            "anew black: give a mask with both."
        )
    return Given(pictures, known)


def read(section: ConfigDict, image_shape: tuple[int, ...]) -> Given:
    """What the config's section `inpaint` names. Raises UserError for files that cannot be read or are of another size."""
    if len(image_shape) != 3:
        return given(np.zeros(0), np.zeros(0), image_shape)
    path, mask_path = Path(section.images).expanduser(), Path(section.mask).expanduser()
    if path.is_dir():
        pictures = np.stack([folder.exactly(path / name, image_shape) for name in folder.names_in(path, "inpaint.images")])
    elif path.suffix == ".npz":
        pictures = _stored(path, image_shape)
    else:
        pictures = folder.exactly(path, image_shape)[None]
    mask = folder.exactly(mask_path, (*image_shape[:2], 1))
    levels = f"{mask_path}, of grey levels {mask.min()} to {mask.max()} of 255,"
    return given(pictures, mask >= 128, image_shape, levels)


def _stored(path, image_shape):
    """The images in an .npz file as sampling writes it."""

    def choose(heads):
        name = next((name for name in ("arr_0", "samples") if name in heads), None)  # of today, and of before
        if name is None:
            raise files.Unreadable(path, "there is no array `arr_0` in it")
        dtype, shape = heads[name]
        if dtype != np.uint8 or shape[1:] != image_shape:
            raise UserError(
                f"{path} holds {dtype} {list(shape)}, and the run's images are uint8 [N, "
                f"{', '.join(map(str, image_shape))}]: give images of its size."
            )
        return [name]

    try:
        (pictures,) = files.read_npz(path, choose, follow=True).values()
        return pictures
    except files.Unreadable as error:
        raise UserError(
            f"{path} cannot be read as images ({error.reason}). Give a .npz as sampling writes it, or PNGs."
        ) from error


def transformed(
    config: ConfigDict,
    given: Given,
    indices: jax.Array,
    sampler: Sampler,
    denoise: Denoiser,
    process: Process,
    end: jax.Array,
    decode: Callable | None,
) -> tuple[Sampler, Denoiser]:
    """The sampler and the denoiser of samples `indices`, inpainting as config.inpaint says; end: the last time of the grid.

    decode: of the space, None where states are made of pixels: elsewhere `pasted` keeps the known ones.
    Raises ValueError with a classifier: its shift of x0 would change the known pixels.
    """
    if config.guidance.classifier:
        raise ValueError("a classifier (guidance.classifier) would change the known pixels: inpaint without it")
    image = given.images[indices % len(given.images)]
    measured = image, given.known, decode
    sampler, denoise = construct(INPAINTING, config.inpaint, sampler, denoise, process, *measured, choice="method")
    return sampler, known_x0(denoise, process, image, given.known, end) if decode is None else denoise


def pasted(given: Given, indices: jax.Array, drawn: jax.Array) -> jax.Array:
    """Images drawn for samples `indices`, with the known pixels in place."""
    return jnp.where(given.known, given.images[indices % len(given.images)], drawn)


def check_condition(task: Any) -> None:
    """Raises UserError where given images have conditions that nobody gives: by default image i would get the i-th class."""
    c = task.condition
    if c.by_default:
        raise UserError(
            f"The {c.name}s of the images must be given, for this run is conditional or has a classifier: {c.told}, of which "
            "image i has the (i mod their number)-th."
        )


def check(config: ConfigDict, task: Any, params: Any, frozen: Any, knobs: Any) -> None:
    """Raises UserError where the method does not go with the sampler, or known pixels would not stay as they are."""
    if config.sampler.last != "denoise":
        raise UserError(
            f"config.sampler.last={config.sampler.last} would leave noise on the known pixels: take denoise, the default."
        )
    try:
        jax.eval_shape(task.sample, params, frozen, knobs, np.uint32(0), np.zeros(2, np.int32))
    except ValueError as error:
        tell_machine(error)
        raise UserError(
            f"config.inpaint.method={config.inpaint.method} and config.sampler.name={config.sampler.name} do not go together: "
            f"{error}."
        ) from error


def picture(given: Given, count: int, take: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A row per image: it, its known pixels, the others grey, and what was drawn for it.

    take(indices) gives those of the `count` samples, uint8.
    """
    total = len(given.images)
    rows, columns = min(total, count, ROWS), min(-(-count // total), COLUMNS)
    before = images.to_uint8(np.asarray(given.images)[:rows])
    masked = images.to_uint8(np.where(given.known, given.images[:rows], 0.0))
    indices = np.arange(rows)[:, None] + total * np.arange(columns)
    drawn = np.full((rows, columns, *before.shape[1:]), images.to_uint8(0.0))
    drawn[indices < count] = take(indices[indices < count])
    tiles = np.concatenate([before[:, None], masked[:, None], drawn], axis=1)
    return plots.image_grid(tiles.reshape(-1, *before.shape[1:]), columns=columns + 2)
