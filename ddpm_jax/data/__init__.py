"""Data: named sources of images, and the order in which training sees them.

`SOURCES[name](split=..., ...)` loads a split, into memory (`Source`) or to be read as it is needed (`Streamed`);
`batch_indices` says which examples batch k holds. A new source is one row of `SOURCES`.
"""

import functools
from collections.abc import Callable

from ddpm_jax.data import cifar, digits, folder, tfds_images, toy2d
from ddpm_jax.data.order import batch_indices, steps_per_epoch
from ddpm_jax.data.source import Source, Streamed, prefetch


class Sources(dict[str, Callable[..., Source | Streamed]]):
    """The named sources. Any other name that tensorflow-datasets could have is the TFDS set of that name.

    So `in` and `[]` know more names than iteration lists. Whether there is such a set is found out when it is loaded,
    because that depends on `data_dir`.
    """

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and bool(tfds_images.NAME.fullmatch(name)))

    def __missing__(self, name: str) -> Callable[..., Source | Streamed]:
        if name not in self:
            raise KeyError(name)
        return functools.partial(tfds_images.other, name)


# Keyword arguments only, and `split` in each. Strings are "" where unset.
SOURCES = Sources(
    digits=digits.load,
    mnist=tfds_images.mnist,
    fashion_mnist=tfds_images.fashion_mnist,
    cifar10=tfds_images.cifar10,
    cifar10_raw=cifar.load_raw,
    folder=folder.load,
    toy2d=toy2d.load,
)

__all__ = ["SOURCES", "Source", "Streamed", "batch_indices", "prefetch", "steps_per_epoch"]
