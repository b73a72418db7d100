"""Pixels: uint8 for storage, float32 in [-1, 1] for networks."""

import jax.numpy as jnp
import numpy as np


def from_uint8(images):
    """k / 127.5 - 1."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images) -> np.ndarray:
    """round(127.5 (x + 1)), clipped to [0, 255]."""
    return np.clip(np.rint(127.5 * (np.asarray(images, np.float64) + 1)), 0, 255).astype(np.uint8)
