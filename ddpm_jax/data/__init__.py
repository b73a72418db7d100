"""Data: named sources of images, and the order in which training sees them.

`SOURCES[name](split=..., ...)` loads a split as a `Source`; `batch_indices` says which examples batch k holds.
A new source is one row of `SOURCES`.
"""

from collections.abc import Callable

from ddpm_jax.data import digits, tfds_images
from ddpm_jax.data.order import batch_indices, steps_per_epoch
from ddpm_jax.data.source import Source

# Keyword arguments only: `split`; the TFDS sources also take `data_dir` and `raw_dir` (strings, "" = unset).
SOURCES: dict[str, Callable[..., Source]] = {
    "digits": digits.load,
    "mnist": tfds_images.mnist,
    "fashion_mnist": tfds_images.fashion_mnist,
}

__all__ = ["SOURCES", "Source", "batch_indices", "steps_per_epoch"]
