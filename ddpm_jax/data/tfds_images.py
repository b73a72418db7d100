"""Image sets through tensorflow-datasets (TFDS), with TensorFlow neither needed nor imported.

A set that TFDS has prepared before, as array_record or TFRECORD, is read as it is, whichever it is (`tfds_read`). Those of
`SETS` are else prepared on first use, from the publisher's files on disk or by download (`tfds_prepare`).
"""

import json
import re
import shlex
from pathlib import Path

from ddpm_jax.data.source import MEMORY_LIMIT_MB, Source, Streamed
from ddpm_jax.data.tfds_prepare import SETS, prepare, quiet
from ddpm_jax.data.tfds_read import check_split, find_prepared, read
from ddpm_jax.errors import UserError
from ddpm_jax.spelling import nearest

NAME = re.compile(r"[a-z]\w*(/\w[\w.-]*)?", re.ASCII)  # a set's name, and maybe which of its configs


def mnist(*, split: str, data_dir: str = "", raw_dir: str = "", memory_limit_mb: int = MEMORY_LIMIT_MB) -> Source | Streamed:
    """MNIST: uint8 [60000 or 10000, 28, 28, 1]. Arguments and errors as for `load`."""
    return load("mnist", split=split, data_dir=data_dir, raw_dir=raw_dir, memory_limit_mb=memory_limit_mb)


def fashion_mnist(
    *, split: str, data_dir: str = "", raw_dir: str = "", memory_limit_mb: int = MEMORY_LIMIT_MB
) -> Source | Streamed:
    """Fashion-MNIST: uint8 [60000 or 10000, 28, 28, 1]. Arguments and errors as for `load`."""
    return load("fashion_mnist", split=split, data_dir=data_dir, raw_dir=raw_dir, memory_limit_mb=memory_limit_mb)


def cifar10(*, split: str, data_dir: str = "", raw_dir: str = "", memory_limit_mb: int = MEMORY_LIMIT_MB) -> Source | Streamed:
    """CIFAR-10: uint8 [50000 or 10000, 32, 32, 3]. Arguments and errors as for `load`."""
    return load("cifar10", split=split, data_dir=data_dir, raw_dir=raw_dir, memory_limit_mb=memory_limit_mb)


def other(name: str, *, split: str, data_dir: str = "", memory_limit_mb: int = MEMORY_LIMIT_MB) -> Source | Streamed:
    """Any set of TFDS, as NAME or NAME/CONFIG, that is prepared in `data_dir`. Arguments and errors as for `load`."""
    return load(name, split=split, data_dir=data_dir, memory_limit_mb=memory_limit_mb)


def load(
    name: str, *, split: str, data_dir: str = "", raw_dir: str = "", memory_limit_mb: int = MEMORY_LIMIT_MB
) -> Source | Streamed:
    """One split of the set `name`, in TFDS's order; a set of `SETS` is prepared in `data_dir` if it is not there yet.

    The set needs a feature "image" of uint8 pixels, all of one shape. Its "label" counts where it is one of TFDS's
    class labels, otherwise every label is 0.

    `data_dir`: "" is TFDS's default (TFDS_DATA_DIR or ~/tensorflow_datasets). `raw_dir`: a folder with the
    publisher's files, in it or in a subfolder `name`; "" is the environment variable DDPM_JAX_RAW, and without that
    (or without the files there) they are downloaded. `memory_limit_mb`: a split with more MiB of pixels than this is
    `Streamed`.

    Raises UserError for an unknown set or split, one that must be prepared with TensorFlow before, missing or wrong raw
    files, no network, a folder that cannot be written, or a prepared set that cannot be read or holds other images.
    """
    from tensorflow_datasets.core import constants

    root = Path(data_dir or constants.DATA_DIR).expanduser()
    prepared = find_prepared(root / name) or _find_config(name, root)
    if prepared is None:
        if name not in SETS:
            raise _not_prepared(name, root)
        check_split(name, split, list(SETS[name].files))
        prepare(name, root, raw_dir)
        prepared = find_prepared(root / name)
        if prepared is None:
            raise UserError(f"{name} was prepared in {root / name}, but no finished version is there. Try again.")
    with quiet():
        return read(name, split, *prepared, memory_limit_mb)


def _not_prepared(name: str, root: Path) -> UserError:
    """What to do about a set that is not there and that cannot be prepared without TensorFlow."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.partition("/")[0] not in known:
        near = nearest(name, {*SETS, "digits", "cifar10_raw", "folder", "toy2d", *known}, 3)
        return UserError(
            f"There is no data set {name!r} in ddpm_jax or in tensorflow-datasets, nor is one prepared in {root / name}. "
            + (f"Did you mean {' or '.join(near)}? " if near else "")
            + "For your own images, take --config.data.name=folder --config.data.path=FOLDER."
        )
    folder = root / name
    there = f" ({folder} exists, but holds no finished set in array_record or TFRECORD format.)" if folder.exists() else ""
    code = (
        f"import tensorflow_datasets as tfds; tfds.builder({json.dumps(name)}, data_dir={json.dumps(str(root))})"
        '.download_and_prepare(file_format="array_record")'
    )
    return UserError(
        f"{name} is not prepared in {root}.{there} This once needs TensorFlow, which may be in another environment: "
        f"pip install tensorflow-cpu && python -c {shlex.quote(code)}"
    )


def _find_config(name: str, root: Path) -> tuple[Path, str] | None:
    """As `find_prepared`, of the one config of the set that is prepared. Raises UserError where there are several."""
    if "/" in name or not (root / name).is_dir():
        return None
    folders = [folder for folder in sorted((root / name).iterdir()) if folder.is_dir() and not folder.is_symlink()]
    found = {folder.name: prepared for folder in folders if (prepared := find_prepared(folder))}
    if len(found) > 1:
        names = " or ".join(f"{name}/{config}" for config in found)
        raise UserError(f"{name} is prepared in {len(found)} configs in {root}: choose one by --config.data.name={names}.")
    return next(iter(found.values()), None)
