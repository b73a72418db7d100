"""Preparing a set of tensorflow-datasets (TFDS) from the publisher's files, in TFDS's own layout, so that TFDS can read it too.

The stock builders unpack and parse with TensorFlow; the subclass here keeps their addresses, checksums, features and
version, and does those two steps with the standard library and NumPy. A further set is one row of `SETS`.
"""

import contextlib
import gzip
import io
import math
import os
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from ddpm_jax import files
from ddpm_jax.data import cifar
from ddpm_jax.data.source import RAW_VARIABLE
from ddpm_jax.data.tfds_read import find_prepared
from ddpm_jax.errors import UserError
from ddpm_jax.terminal import say

PROBE_SECONDS = 4.0  # how long a server may take to answer before it counts as out of reach


class TfdsSet(NamedTuple):
    """How one set is prepared: the stock builder in `tfds.image_classification`, and its raw files by split.

    `decode(split, paths)` gives (images uint8 [N, H, W, C], labels [N]) from the split's raw files, in their order.
    `label_names(paths)`, where the stock builder finds the labels' names in the raw files: those.
    """

    stock: str
    files: dict[str, tuple[str, ...]]
    decode: Callable[[str, list[Path]], tuple[np.ndarray, np.ndarray]]
    label_names: Callable[[list[Path]], list[str]] | None = None


def prepare(name: str, root: Path, raw_dir: str) -> None:
    """Writes the set as array_record under `root`. Safe to run twice at once, and after a run that was killed.

    TFDS prepares in a folder of its own and renames it when complete, so a version's folder is whole or absent.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    row = SETS[name]
    stock = getattr(tfds.image_classification, row.stock)
    folder = root / name / str(stock.VERSION)
    if folder.exists() and find_prepared(root / name) is None:
        raise UserError(
            f"{folder} exists, but holds no finished set in array_record or TFRECORD format, of TFDS 4 or newer. "
            "Delete that folder, or choose another data_dir, then try again."
        )

    wanted = {file for files in row.files.values() for file in files}
    addresses = {file: url for url in stock.url_infos if (file := url.rsplit("/", 1)[-1]) in wanted}

    raw, looked = _find_raw(name, sorted(wanted), raw_dir)
    if raw is None and (problem := _offline(root, stock, addresses)):
        raise UserError(
            f"{name} is not prepared in {root / name} and its raw files are not at hand ({looked}); downloading them "
            f"failed: {problem}. Get {', '.join(sorted(wanted))} on a machine with network, put them into one folder "
            f"and pass it as raw_dir or in the environment variable {RAW_VARIABLE}. "
            "configs/digits.py trains on images that need no download."
        )

    origin = raw or urlsplit(min(addresses.values())).netloc
    say(f"preparing {name} in {root} from {origin}..., once")
    config = tfds.download.DownloadConfig(manual_dir=raw and str(raw), try_download_gcs=False)
    try:
        builder = _builder_class(stock, row, addresses)(data_dir=str(root))
        with quiet():
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except NonMatchingChecksumError as error:
        what = str(error).splitlines()[0].rstrip(":")  # names the address and the local file
        raise UserError(
            f"A raw file of {name} is damaged or belongs to another set ({what}). Replace it by the official file."
        ) from error
    except (OSError, tfds.download.DownloadError) as error:
        if find_prepared(root / name) is None:  # else another process was faster, and its result is used
            raise UserError(f"{name} could not be prepared in {root}: {type(error).__name__}: {error}") from error


def _find_raw(name: str, files: list[str], raw_dir: str) -> tuple[Path | None, str]:
    """(folder that holds all `files` or None, where was looked).

    Raises UserError where `raw_dir` is given and lacks some; a folder from the environment may.
    """
    given = raw_dir or os.environ.get(RAW_VARIABLE, "")
    if not given:
        return None, f"raw_dir and {RAW_VARIABLE} are unset"
    # The set's own subfolder comes first: MNIST and Fashion-MNIST use the same file names.
    folders = [Path(given).expanduser() / name, Path(given).expanduser()]
    missing = {folder: [file for file in files if not (folder / file).is_file()] for folder in folders}
    for folder in folders:
        if not missing[folder]:
            return folder, ""
    nearest = min(folders, key=lambda folder: len(missing[folder]))
    looked = f"looked in {folders[0]} and {folders[1]}; missing: {', '.join(missing[nearest])}"
    if raw_dir:
        raise UserError(
            f"raw_dir={raw_dir!r} lacks raw files of {name} ({looked}). Put the official files there under these "
            "names, or leave raw_dir empty to download them."
        )
    return None, looked


def _offline(root: Path, stock: Any, addresses: dict[str, str]) -> str:
    """Why the files cannot be had by download, or "" where they can (or an earlier run has fetched them)."""
    from tensorflow_datasets.core.download import resource

    downloads = root / "downloads"
    for file, url in sorted(addresses.items()):
        fetched = resource.get_dl_fname(url, stock.url_infos[url].checksum)
        places = (downloads / stock.name / fetched, downloads / fetched, downloads / "manual" / file)
        if not any(place.exists() for place in places):
            return _unreachable(url)
    return ""


def _unreachable(url: str) -> str:
    """Why the server gives no answer at all to a HEAD request, after PROBE_SECONDS or so; "" if it gives one."""
    import requests

    problem = [f"{urlsplit(url).netloc} did not answer within {PROBE_SECONDS:g} seconds"]

    def ask():
        try:
            requests.head(url, timeout=PROBE_SECONDS, allow_redirects=True)  # honours proxies, as TFDS does
            problem[0] = ""
        except requests.RequestException as error:
            problem[0] = f"no answer from {urlsplit(url).netloc} ({type(error).__name__})"

    # In a thread, because looking up the host's name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 0.5)
    return problem[0]


def _builder_class(stock: Any, row: TfdsSet, addresses: dict[str, str]) -> Any:
    """The stock builder with its TensorFlow parts replaced."""
    from PIL import Image
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class Builder(stock):
            __module__ = stock.__module__  # TFDS records it, and finds the metadata of the set by it
            name = stock.name
            url_infos = stock.url_infos

            def _split_generators(self, dl_manager):
                # Not `download_and_extract`: it needs TensorFlow, and it keeps extracted files by bare file name, so
                # that two sets with equal file names would share one's pixels.
                paths = {file: Path(path) for file, path in dl_manager.download(addresses).items()}
                if row.label_names:
                    self.info.features["label"].names = row.label_names(list(paths.values()))
                return {
                    split: self._generate_examples(split, [paths[file] for file in files]) for split, files in row.files.items()
                }

            def _generate_examples(self, split, paths):
                images, labels = row.decode(split, paths)
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    # Pillow images, because encoding an array is done by TensorFlow. The key sets the stored order.
                    pixels = image.squeeze(-1) if image.shape[-1] == 1 else image
                    example = {"image": Image.fromarray(pixels), "label": label}
                    yield i, example | ({"id": f"{split}_{i:05d}"} if "id" in self.info.features else {})

    return Builder


def _decode_idx(_split: str, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's gzipped idx files, [images, labels]."""
    images, labels = map(_read_idx, paths)
    return images[..., None], labels


def _read_idx(path: Path) -> np.ndarray:
    """An idx file of bytes: two zeros, type 8, the number of axes, each axis as a big-endian int32, the data."""
    with files.open_existing(path, follow=True) as file, gzip.open(file) as content:
        data = content.read(files.ARRAYS_LIMIT)
    zeros, kind, axes = struct.unpack(">HBB", data[:4])
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    if (zeros, kind) != (0, 8) or len(data) != 4 + 4 * axes + math.prod(shape):
        raise UserError(f"{path} is not an idx file of bytes.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}


def _decode_cifar(split: str, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The official archive of CIFAR-10's binary version."""
    parts = [cifar.decode(data, f"{paths[0]}, {name}") for name, data in _members(paths[0], _CIFAR_BATCHES[split])]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _cifar_label_names(paths: list[Path]) -> list[str]:
    ((_, data),) = _members(paths[0], ["batches.meta.txt"])
    return data.decode().split()


def _members(path: Path, names: list[str]) -> list[tuple[str, bytes]]:
    """Files of the archive by their names, read without unpacking anything to disk."""
    found = {}
    with files.open_existing(path, follow=True) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if folder == "cifar-10-batches-bin" and name in names and member.isfile():
                found[name] = archive.extractfile(member).read()
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} lacks {', '.join(missing)}. Replace it by the official file.")
    return [(name, found[name]) for name in names]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what TFDS prints, logs and draws; its downloader gives up after seconds instead of minutes."""
    import tensorflow_datasets as tfds
    from absl import logging
    from tensorflow_datasets.core.download import downloader

    verbosity = logging.get_verbosity()
    tfds.disable_progress_bar()
    # Not set back: when one file fails, threads that fetch the others still run, read this later, and hold up the exit.
    downloader.MAX_RETRIES = 3
    try:
        logging.set_verbosity(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}

SETS = {
    "mnist": TfdsSet("MNIST", _IDX_FILES, _decode_idx),
    "fashion_mnist": TfdsSet("FashionMNIST", _IDX_FILES, _decode_idx),
    "cifar10": TfdsSet("Cifar10", {split: (_CIFAR_ARCHIVE,) for split in _CIFAR_BATCHES}, _decode_cifar, _cifar_label_names),
}
