"""Pixels: uint8 for storage, float32 in [-1, 1] for networks. Points are float32 in both."""

import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError


def to_model(data):
    """k / 127.5 - 1 for uint8; floats, which are not pixels, as they are."""
    return data.astype(jnp.float32) / 127.5 - 1 if data.dtype == np.uint8 else data


def to_uint8(images) -> np.ndarray:
    """round(127.5 (x + 1)), clipped to [0, 255]."""
    return np.clip(np.rint(127.5 * (np.asarray(images, np.float64) + 1)), 0, 255).astype(np.uint8)


def checked(given, shape: tuple[int, ...], what: str, *, bounded: bool = True) -> np.ndarray:
    """`to_model` of images [N, *shape], uint8 or floats in [-1, 1]; of points, and if not `bounded`, of any finite floats.

    Raises UserError, which calls them `what`, for others.
    """
    given = np.asarray(given)
    pixels = bounded and len(shape) == 3
    if given.shape[1:] != tuple(shape) or not len(given):
        raise UserError(f"{what} must be of the run's shape, [N, {', '.join(map(str, shape))}], found {list(given.shape)}.")
    floats = jnp.issubdtype(given.dtype, jnp.floating) and np.all(np.abs(given) <= (1 if pixels else np.finfo(np.float32).max))
    if not floats and not (pixels and given.dtype == np.uint8):
        wanted = "uint8, or floats from -1 to 1" if pixels else "finite floats"
        numbers = jnp.issubdtype(given.dtype, jnp.number)
        raise UserError(
            f"{what} must be {wanted}, found {given.dtype}{f' from {given.min()} to {given.max()}' if numbers else ''}."
        )
    return np.asarray(to_model(given), np.float32)
