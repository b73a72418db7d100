"""Pixels: uint8 for storage, float32 in [-1, 1] for networks. Points are float32 in both."""

import jax.numpy as jnp
import numpy as np


def to_model(data):
    """k / 127.5 - 1 for uint8; floats, which are not pixels, as they are."""
    return data.astype(jnp.float32) / 127.5 - 1 if data.dtype == np.uint8 else data


def to_uint8(images) -> np.ndarray:
    """round(127.5 (x + 1)), clipped to [0, 255]."""
    return np.clip(np.rint(127.5 * (np.asarray(images, np.float64) + 1)), 0, 255).astype(np.uint8)
