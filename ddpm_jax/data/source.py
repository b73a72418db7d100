"""What a data source returns: `Source`, a split in memory, or `Streamed`, one that is read as it is needed.

Both have `num_examples`, `image_shape`, `num_classes` and `gather(indices)`, which gives the examples of those indices
as {"image": [B, *image_shape], "label": int32 [B]} in the host's memory, and is a function of the indices alone:
batch k is gather(batch_indices(seed, k, num_examples, batch_size)), whatever was read before. A `Source` has its
`arrays` besides, which may be put on the device, and the batches be gathered there.

`identity` says which data they are (`identity.py`); {} where nobody asks. `class_names`: those of the labels, or ().

"image" holds pixels, uint8 [H, W, C], or what needs no conversion, float32 of any shape (the points of `toy2d`).
"""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.identity import Identity, class_names

RAW_VARIABLE = "DDPM_JAX_RAW"  # the folder of raw files when `raw_dir` is ""
MEMORY_LIMIT_MB = 2048  # decoded sets that are larger are streamed, unless `memory_limit_mb` says otherwise


class Source(NamedTuple):
    """A whole split in memory.

    `arrays`: "image" uint8 [N, H, W, C] (or float32 [N, ...]) and "label" int32 [N]; `num_classes`: labels lie in
    0 .. num_classes - 1.
    """

    arrays: dict[str, np.ndarray]
    num_classes: int
    identity: Identity = {}

    def __repr__(self) -> str:
        return f"Source({self.num_examples} of {list(self.image_shape)}, {self.num_classes} classes)"

    @property
    def class_names(self) -> tuple[str, ...]:
        return class_names(self.identity)

    @property
    def num_examples(self) -> int:
        return len(self.arrays["image"])

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.arrays["image"].shape[1:]

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in self.arrays.items()}


class Streamed(NamedTuple):
    """A split that stays on disk. `gather` may be called from any thread."""

    num_examples: int
    image_shape: tuple[int, ...]
    num_classes: int
    gather: Callable[[np.ndarray], dict[str, np.ndarray]]
    identity: Identity = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        return class_names(self.identity)


def prefetch(source: Source | Streamed, batches: Iterable[np.ndarray], depth: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """source.gather of each of the index arrays, in order, up to `depth` of them read ahead in a thread.

    `batches` may be endless; an error of `gather` is raised at the batch that it belongs to.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        waiting: deque = deque()
        try:
            for indices in batches:
                waiting.append(thread.submit(source.gather, indices))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@functools.cache
def decoders() -> ThreadPoolExecutor:
    """The threads that decode images: Pillow works outside Python's lock."""
    return ThreadPoolExecutor(num_decoders(), thread_name_prefix="decode")


def num_decoders() -> int:
    return min(16, os.cpu_count() or 1)
