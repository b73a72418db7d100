"""Samples as files that other programs read. A writer takes them batch by batch: memory never holds more than one."""

import itertools
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from ddpm_jax import files

Rows = Mapping[str, np.ndarray]  # what samples are conditioned on, by the names of the arrays, [M, ...] each


class Samples(Protocol):
    """`count` samples, batch by batch, uint8 images or float32 points. `runs.parts.Parts` are such."""

    count: int

    def __iter__(self) -> Iterator[np.ndarray]: ...

    def rows(self, indices: np.ndarray) -> np.ndarray: ...


def write_npz(path: Path, samples: Samples, given: Rows, together: files.Together) -> Path:
    """PATH.npz, as guided-diffusion's evaluator reads it: `arr_0`, the samples; beside them the rows of `given`, in turn:
    `arr_1`, int32 [N], are labels."""
    path = path.with_name(f"{path.name}.npz")
    first = samples.rows(np.arange(1))
    head = {"descr": first.dtype.str, "fortran_order": False, "shape": (samples.count, *first.shape[1:])}
    with together.opens(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, head)
            for x in samples:
                member.write(x.tobytes())
        for name, rows in given.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, rows[np.arange(samples.count) % len(rows)])
    return path


def write_pngs(path: Path, samples: Samples, given: Rows, together: files.Together) -> Path:  # noqa: ARG001 - as all
    """PATH, a folder of 000000.png and so on, one file per sample, as clean-fid and torch-fidelity read it."""
    from PIL import Image

    fresh = together.folder(path)
    for i, image in enumerate(itertools.chain.from_iterable(samples)):
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(fresh / f"{i:06}.png")
    os.sync()
    return path


WAYS: dict[str, Callable[[Path, Samples, Rows, files.Together], Path]] = {"npz": write_npz, "png": write_pngs}
