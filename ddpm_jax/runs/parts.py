"""Samples on the disk batch by batch, as they are drawn: a kill costs one batch, and memory never holds more than one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ddpm_jax import files, images, plots
from ddpm_jax.diffusion.sample import Sampled

IDENTITY_LIMIT = 2**12  # bytes of an identity


class Parts:
    """The batches of some samples, in the folder NAME.parts. Images are uint8, points float32.

    identity: all that the samples depend on, or a digest of it. A part of another identity counts as missing, so that samples
    of two settings are never mixed.
    """

    def __init__(self, samples: Path, name: str, identity: str, batch: int, count: int):
        self.folder = files.folder(samples, f"{name}.parts")
        self.identity, self.batch, self.count = identity, batch, count

    def __len__(self) -> int:
        return -(-self.count // self.batch)

    def done(self) -> int:
        """How many batches are there, from the first on, before one is missing."""
        for number in range(len(self)):
            try:
                self._read(number, "evaluations")
            except files.Unreadable:
                return number
        return len(self)

    def add(self, number: int, drawn: Sampled) -> None:
        """Writes a batch, whole or not at all. Raises OSError."""
        x = images.to_uint8(drawn.x) if drawn.x.ndim == 4 else drawn.x
        shown = slice(plots.FILMED if drawn.x.ndim == 4 else None)
        film = {} if drawn.frames is None else {"frames": drawn.frames[:, shown]}
        with files.whole(self._path(number)) as file:
            np.savez(file, identity=self.identity, x=x, evaluations=drawn.evaluations, **film)

    def __iter__(self) -> Iterator[np.ndarray]:
        """The samples of one batch after the other."""
        return (self._read(number, "x") for number in range(len(self)))

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Samples of these indices."""
        numbers = np.asarray(indices) // self.batch
        found = {number: self._read(number, "x")[indices[numbers == number] - number * self.batch] for number in set(numbers)}
        rows = np.empty((len(numbers), *next(iter(found.values())).shape[1:]), next(iter(found.values())).dtype)
        for number, x in found.items():
            rows[numbers == number] = x
        return rows

    @property
    def frames(self) -> np.ndarray | None:
        """Those of batch 0, of images the first, as many as an animation shows; or None."""
        return self._read(0, "frames")

    @property
    def evaluations(self) -> int:
        """The most of any batch."""
        return max(int(self._read(number, "evaluations")) for number in range(len(self)))

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _path(self, number):
        return self.folder / f"{number:06}.npz"

    def _read(self, number, name):
        """An array of a part, or None. Raises files.Unreadable for a part that is missing, damaged or of another identity."""
        path = self._path(number)
        found = files.read_npz(path, lambda _: ["identity"], limit=IDENTITY_LIMIT)["identity"]
        if str(found) != self.identity:
            raise files.Unreadable(path, "it is of samples that were drawn in another way")
        return files.read_npz(path, lambda heads: {name} & {*heads}).get(name)
