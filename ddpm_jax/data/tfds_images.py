"""Image sets through tensorflow-datasets (TFDS), with TensorFlow neither needed nor imported.

A set that TFDS has prepared before, as array_record or TFRECORD, is read as it is, whichever it is. Those of `SETS` are
else prepared on first use, from the publisher's files on disk or by download, in TFDS's own layout, so that TFDS itself
can read it too. The stock builders unpack and parse with TensorFlow; the subclass here keeps their addresses, checksums,
features and version, and does those two steps with the standard library and NumPy. A further set is one row of `SETS`.

A set that is too large for memory is streamed: TFDS's data sources (grain's random access to array_record files) and an
index of the records of TFRECORD files both read any example by its number.
"""

import contextlib
import difflib
import gzip
import io
import json
import math
import os
import re
import shlex
import struct
import tarfile
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from ddpm_jax.data import cifar
from ddpm_jax.data.source import MEMORY_LIMIT_MB, RAW_VARIABLE, Source, Streamed, decoders, num_decoders
from ddpm_jax.errors import UserError

NAME = re.compile(r"[a-z]\w*(/\w[\w.-]*)?", re.ASCII)  # a set's name, and maybe which of its configs
PROBE_SECONDS = 4.0  # how long a server may take to answer before it counts as out of reach
_CHUNK = 1024  # records decoded per call


class TfdsSet(NamedTuple):
    """How one set is prepared: the stock builder in `tfds.image_classification`, and its raw files by split.

    `decode(split, paths)` gives (images uint8 [N, H, W, C], labels [N]) from the split's raw files, in their order.
    `label_names(paths)`, where the stock builder finds the labels' names in the raw files: those.
    """

    stock: str
    files: dict[str, tuple[str, ...]]
    decode: Callable[[str, list[Path]], tuple[np.ndarray, np.ndarray]]
    label_names: Callable[[list[Path]], list[str]] | None = None


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
    prepared = _find_prepared(root / name) or _find_config(name, root)
    if prepared is None:
        if name not in SETS:
            raise _not_prepared(name, root)
        _check_split(name, split, list(SETS[name].files))
        _prepare(name, root, raw_dir)
        prepared = _find_prepared(root / name)
        if prepared is None:
            raise UserError(f"{name} was prepared in {root / name}, but no finished version is there. Try again.")
    with _quiet():
        return _read(name, split, *prepared, memory_limit_mb)


def _not_prepared(name: str, root: Path) -> UserError:
    """What to do about a set that is not there and that cannot be prepared without TensorFlow."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if name.partition("/")[0] not in known:
        near = difflib.get_close_matches(name, {*SETS, "digits", "cifar10_raw", "folder", "toy2d", *known}, 3)
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
    """As `_find_prepared`, of the one config of the set that is prepared. Raises UserError where there are several."""
    if "/" in name or not (root / name).is_dir():
        return None
    folders = [folder for folder in sorted((root / name).iterdir()) if folder.is_dir() and not folder.is_symlink()]
    found = {folder.name: prepared for folder in folders if (prepared := _find_prepared(folder))}
    if len(found) > 1:
        names = " or ".join(f"{name}/{config}" for config in found)
        raise UserError(f"{name} is prepared in {len(found)} configs in {root}: choose one by --config.data.name={names}.")
    return next(iter(found.values()), None)


def _check_split(name: str, split: str, known: list[str]) -> None:
    if split not in known:
        raise UserError(f"{name} has the splits {', '.join(sorted(known))}; found split {split!r}.")


# Reading


def _find_prepared(folder: Path) -> tuple[Path, str] | None:
    """(version's folder, file format) of the finished versions in `folder`; array_record first, then the newest."""
    found = []
    for info_file in folder.glob("*/dataset_info.json"):
        version = info_file.parent
        # TFDS writes into `incomplete.*` and renames at the end. Sets older than TFDS 4 have no features.json.
        if not re.fullmatch(r"\d+\.\d+\.\d+", version.name) or not (version / "features.json").exists():
            continue
        try:
            info = json.loads(info_file.read_text())
            formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
        except (ValueError, OSError) as error:
            raise UserError(f"{info_file} cannot be read ({error}). Delete {version}, then try again.") from error
        for form in ("array_record", "tfrecord"):
            if form in formats:
                found.append((form == "array_record", tuple(map(int, version.name.split("."))), version, form))
                break
    return max(found)[2:] if found else None


def _read(name: str, split: str, folder: Path, form: str, memory_limit_mb: int) -> Source | Streamed:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder), file_format=form)
    _check_split(name, split, list(builder.info.splits))
    whole, part = builder.info.features, builder.info.splits[split]
    features = dict(whole.items()) if isinstance(whole, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    told = " ".join(str(whole).split())
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise UserError(f"{name} is no set of images: it needs a feature 'image' of uint8 pixels, and has {told}.")
    labelled = isinstance(label, tfds.features.ClassLabel) and bool(label.num_classes)
    num_examples, num_classes = part.num_examples, label.num_classes if labelled else 1
    shape = image.shape
    with _reading(folder):
        if None in shape:  # the set does not say: it must be that of the first image
            shape = next(_examples(builder, split, form))["image"].shape
        take = Taker(name, shape, num_classes, labelled)
        if num_examples * math.prod(shape) > memory_limit_mb * 2**20:
            records = builder.as_data_source(split=split) if form == "array_record" else TfrecordIndex(builder, split)
            if len(records) != num_examples:
                raise ValueError(f"{len(records)} of {num_examples} examples")
            return Streamed(num_examples, shape, num_classes, Reader(records, take, folder).gather)

        shards = [(Path(path).name, os.path.getsize(path)) for path in part.filepaths]
        cache = folder.parent / "ddpm_jax_cache" / f"{folder.name}-{split}.npz"
        fingerprint = json.dumps(shards)
        shapes = {"image": (num_examples, *shape), "label": (num_examples,)}
        arrays = _load_cache(cache, shapes, fingerprint)
        if arrays is None:
            arrays = {"image": np.empty(shapes["image"], np.uint8), "label": np.empty(shapes["label"], np.int32)}
            count = 0
            for example in _examples(builder, split, form):
                arrays["image"][count], arrays["label"][count] = take(example)
                count += 1
            if count != num_examples:
                raise ValueError(f"{count} of {num_examples} examples")
            _save_cache(cache, arrays, fingerprint)
    return Source(arrays, num_classes)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files surface as anything: OSError, protobuf, Pillow, array_record's own
        raise UserError(
            f"The prepared set in {folder} cannot be read ({type(error).__name__}: {error}). It is damaged or "
            "incomplete: delete that folder, or choose another data_dir, then try again."
        ) from error


class Taker(NamedTuple):
    """From TFDS's example to (image, label), checked."""

    name: str
    shape: tuple[int, ...]
    num_classes: int
    labelled: bool

    def __call__(self, example: dict[str, Any]) -> tuple[np.ndarray, int]:
        image, label = example["image"], int(example["label"]) if self.labelled else 0
        if image.shape != self.shape:
            raise UserError(
                f"The images of {self.name} have several shapes ({self.shape} and {image.shape}), but must have one. Write "
                "them to PNG files and take --config.data.name=folder, which resizes them."
            )
        if not 0 <= label < self.num_classes:
            raise UserError(
                f"This split of {self.name} has a label {label}, outside 0 .. {self.num_classes - 1}. Take another split."
            )
        return image, label


class Reader(NamedTuple):
    """Reads examples of a prepared set by their numbers. `records` is one of TFDS's data sources, or like them."""

    records: Any
    take: Taker
    folder: Path

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        parts = np.array_split(np.asarray(indices), min(num_decoders(), max(1, len(indices))))
        with _reading(self.folder):
            groups = list(decoders().map(self.records.__getitems__, [part.tolist() for part in parts]))
            images, labels = zip(*(self.take(example) for group in groups for example in group), strict=True)
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}


class TfrecordIndex:
    """Where each record of a split's TFRECORD files lies, so that any of them can be read alone."""

    def __init__(self, builder: Any, split: str):
        self.features = builder.info.features
        self.paths = [Path(path) for path in builder.info.splits[split].filepaths]
        spans = [_tfrecord_spans(path) for path in self.paths]
        self.files = np.repeat(np.arange(len(spans)), [len(span) for span in spans])
        self.spans = np.concatenate(spans)

    def __len__(self) -> int:
        return len(self.spans)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        return [self._read(key) for key in keys]

    def _read(self, key: int) -> dict[str, Any]:
        start, length = self.spans[key].tolist()
        path = self.paths[self.files[key]]
        with path.open("rb") as file:
            file.seek(start)
            record = file.read(length)
        if len(record) < length:
            raise ValueError(f"{path.name} is cut short")
        return self.features.deserialize_example_np(record)


def _examples(builder: Any, split: str, form: str) -> Iterator[dict[str, Any]]:
    if form == "array_record":
        source = builder.as_data_source(split=split)
        for start in range(0, len(source), _CHUNK):
            yield from source.__getitems__(range(start, min(start + _CHUNK, len(source))))
    else:
        for path in builder.info.splits[split].filepaths:
            for record in _tfrecords(Path(path)):
                yield builder.info.features.deserialize_example_np(record)


def _tfrecord_spans(path: Path) -> np.ndarray:
    """(start, length) of the records of a TFRECORD file, int64 [N, 2].

    Its form: uint64 length, uint32 CRC, the bytes, uint32 CRC, and so on. The CRCs are not checked.
    """
    spans, start, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while start < size:
            file.seek(start)
            head = file.read(12)
            length = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else size
            if start + 16 + length > size:
                raise ValueError(f"{path.name} is cut short")
            spans.append((start + 12, length))
            start += 16 + length
    return np.array(spans, np.int64).reshape(-1, 2)


def _tfrecords(path: Path) -> Iterator[bytes]:
    """The records of a TFRECORD file."""
    spans = _tfrecord_spans(path)
    with path.open("rb") as file:
        for start, length in spans.tolist():
            file.seek(start)
            yield file.read(length)


def _load_cache(path: Path, shapes: dict[str, tuple[int, ...]], fingerprint: str) -> dict[str, np.ndarray] | None:
    """The cached arrays, or None where the file is absent, damaged, or made from other shards."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("image", "label")}
            same = str(stored["shards"]) == fingerprint
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    fits = all(arrays[key].shape == shape for key, shape in shapes.items())
    return arrays if same and fits and (arrays["image"].dtype, arrays["label"].dtype) == (np.uint8, np.int32) else None


def _save_cache(path: Path, arrays: dict[str, np.ndarray], fingerprint: str) -> None:
    """Writes the cache in one move; a folder that cannot be written only means slower starts."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        try:
            with partial.open("xb") as file:
                np.savez(file, **arrays, shards=np.array(fingerprint))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError:
        pass


# Preparing


def _prepare(name: str, root: Path, raw_dir: str) -> None:
    """Writes the set as array_record under `root`. Safe to run twice at once, and after a run that was killed.

    TFDS prepares in a folder of its own and renames it when complete, so a version's folder is whole or absent.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    row = SETS[name]
    stock = getattr(tfds.image_classification, row.stock)
    folder = root / name / str(stock.VERSION)
    if folder.exists() and _find_prepared(root / name) is None:
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
    print(f"preparing {name} in {root} from {origin}..., once", flush=True)
    config = tfds.download.DownloadConfig(manual_dir=raw and str(raw), try_download_gcs=False)
    try:
        builder = _builder_class(stock, row, addresses)(data_dir=str(root))
        with _quiet():
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except NonMatchingChecksumError as error:
        what = str(error).splitlines()[0].rstrip(":")  # names the address and the local file
        raise UserError(
            f"A raw file of {name} is damaged or belongs to another set ({what}). Replace it by the official file."
        ) from error
    except (OSError, tfds.download.DownloadError) as error:
        if _find_prepared(root / name) is None:  # else another process was faster, and its result is used
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
    data = gzip.decompress(path.read_bytes())
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
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if folder == "cifar-10-batches-bin" and name in names and member.isfile():
                found[name] = archive.extractfile(member).read()
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} lacks {', '.join(missing)}. Replace it by the official file.")
    return [(name, found[name]) for name in names]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
