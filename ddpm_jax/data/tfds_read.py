"""Reading a set that tensorflow-datasets (TFDS) has prepared, as array_record or TFRECORD, without TensorFlow.

One that is too large for memory is streamed: TFDS's data sources (grain's random access to array_record files) and an index
of the records of TFRECORD files both read any example by its number.
"""

import contextlib
import json
import math
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import files
from ddpm_jax.data import tfds_trust
from ddpm_jax.data.identity import digest_of_examples
from ddpm_jax.data.source import Source, Streamed, decoders, num_decoders
from ddpm_jax.errors import UserError, tell_machine

CACHE = "ddpm_jax_cache"  # the folder beside those of the versions
CLASSES_LIMIT = 2**17  # of a set: each gets a name, and a few bytes can declare any number of them
_CHUNK = 1024  # records decoded per call


def check_split(name: str, split: str, known: list[str]) -> None:
    """Raises UserError for a split that the set has not."""
    if split not in known:
        raise UserError(f"{name} has the splits {', '.join(sorted(known))}; found split {split!r}.")


def find_prepared(folder: Path) -> tuple[Path, str] | None:
    """(version's folder, file format) of the finished versions in `folder`; array_record first, then the newest."""
    found = []
    for info_file in folder.glob("*/dataset_info.json"):
        version = info_file.parent
        # TFDS writes into `incomplete.*` and renames at the end. Sets older than TFDS 4 have no features.json.
        if not re.fullmatch(r"\d+\.\d+\.\d+", version.name):
            continue
        tfds_trust.check_files(version)  # of all: TFDS opens them too where it prepares the set
        if not (version / "features.json").exists():
            continue
        info = tfds_trust.read_json(info_file)
        others = info.get("alternativeFileFormats", [])
        formats = [info.get("fileFormat", "tfrecord"), *(others if isinstance(others, list) else [])]
        for form in ("array_record", "tfrecord"):
            if form in formats:
                found.append((form == "array_record", tuple(map(int, version.name.split("."))), version, form))
                break
    return max(found)[2:] if found else None


def read(name: str, split: str, folder: Path, form: str, memory_limit_mb: int) -> Source | Streamed:
    """A split of the set prepared in `folder`, in array_record or tfrecord form; `Streamed` if it has more MiB of pixels.

    What was decoded into memory is cached beside the folder. Raises UserError where it is no set of images, or damaged, or
    names what TFDS would run or what lies outside the folder.
    """
    import tensorflow_datasets as tfds

    tfds_trust.check(folder)
    with _reading(folder):
        builder = tfds.builder_from_directory(str(folder), file_format=form)
    check_split(name, split, list(builder.info.splits))
    whole, part = builder.info.features, builder.info.splits[split]
    features = dict(whole.items()) if isinstance(whole, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    told = " ".join(str(whole).split())
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise UserError(f"{name} is no set of images: it needs a feature 'image' of uint8 pixels, and has {told}.")
    labelled = isinstance(label, tfds.features.ClassLabel) and bool(label.num_classes)
    if labelled and label.num_classes > CLASSES_LIMIT:
        raise UserError(f"{name} has {label.num_classes} classes, more than {CLASSES_LIMIT}: choose another data_dir.")
    num_examples, num_classes = part.num_examples, label.num_classes if labelled else 1

    def identity(gather):
        exact = image.encoding_format == "png"
        known = {"set": builder.info.full_name, "split": split, "examples": num_examples}
        known |= {"classes": list(label.names)} if labelled else {}
        return known | {"digest": digest_of_examples(gather, num_examples, pixels=exact)}

    shape = image.shape
    with _reading(folder):
        if None in shape:  # the set does not say: it must be that of the first image
            shape = next(_examples(builder, split, form))["image"].shape
        take = Taker(name, shape, num_classes, labelled)
        if num_examples * math.prod(shape) > memory_limit_mb * 2**20:
            records = builder.as_data_source(split=split) if form == "array_record" else TfrecordIndex(builder, split)
            if len(records) != num_examples:
                raise ValueError(f"{len(records)} of {num_examples} examples")
            gather = Reader(records, take, folder).gather
            return Streamed(num_examples, shape, num_classes, gather, identity(gather))

        shards = [(Path(path).name, os.path.getsize(path)) for path in part.filepaths]
        cache = f"{folder.name}-{split}.npz"
        fingerprint = json.dumps(shards)
        shapes = {"image": (num_examples, *shape), "label": (num_examples,)}
        arrays = _load_cache(folder.parent / CACHE / cache, shapes, fingerprint)
        if arrays is None:
            arrays = {"image": np.empty(shapes["image"], np.uint8), "label": np.empty(shapes["label"], np.int32)}
            count = 0
            for example in _examples(builder, split, form):
                arrays["image"][count], arrays["label"][count] = take(example)
                count += 1
            if count != num_examples:
                raise ValueError(f"{count} of {num_examples} examples")
            _save_cache(folder.parent, cache, arrays, fingerprint)
    source = Source(arrays, num_classes)
    return source._replace(identity=identity(source.gather))


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files surface as anything: OSError, protobuf, Pillow, array_record's own
        tell_machine(error)
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
        with files.open_existing(path) as file:
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
    with files.open_existing(path) as file:
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
    with files.open_existing(path) as file:
        for start, length in spans.tolist():
            file.seek(start)
            yield file.read(length)


def _load_cache(path: Path, shapes: dict[str, tuple[int, ...]], fingerprint: str) -> dict[str, np.ndarray] | None:
    """The cached arrays, or None where the file is absent, damaged, or made from other shards."""
    wanted = {key: (dtype, shapes[key]) for key, dtype in {"image": np.uint8, "label": np.int32}.items()}

    def choose(heads):
        if {key: heads[key] for key in wanted} != wanted:
            raise files.Unreadable(path, "it holds other arrays")
        return [*wanted, "shards"]

    try:
        arrays = files.read_npz(path, choose, limit=sys.maxsize)  # of the shapes that the set has
    except files.Unreadable:
        return None
    return arrays if str(arrays.pop("shards")) == fingerprint else None


def _save_cache(folder: Path, name: str, arrays: dict[str, np.ndarray], fingerprint: str) -> None:
    """Writes the cache in one move; a folder that cannot be written only means slower starts."""
    with contextlib.suppress(OSError), files.whole(files.folder(folder, CACHE) / name) as file:
        np.savez(file, **arrays, shards=np.array(fingerprint))
