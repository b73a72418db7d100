"""CIFAR-10 from the five training batches of its binary version alone: no archive, no test batch, no preparation."""

import lzma
import os
from pathlib import Path

import numpy as np

from ddpm_jax import files
from ddpm_jax.data.identity import digest_of_examples
from ddpm_jax.data.source import RAW_VARIABLE, Source, decoders
from ddpm_jax.errors import UserError

RECORD = 1 + 3 * 32 * 32  # bytes: the label; the image's 1024 red values by rows, then the green, then the blue
BATCH = 10_000  # records in a batch
HELD_OUT = 5_000  # images at the end of the fifth batch that are not trained on

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # of batches.meta.txt

_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_SPLITS = {"train": slice(0, -HELD_OUT), "test": slice(-HELD_OUT, None), "validation": slice(-HELD_OUT, None)}


def load_raw(*, split: str, raw_dir: str = "") -> Source:
    """CIFAR-10's training images without the official test set: uint8 [45000 or 5000, 32, 32, 3], in the files' order.

    The split "train" is the first 45,000 of the 50,000 training images. "test" and "validation" both name the other
    5,000, the last ones, which are held out: numbers found on them are not those of the official test set.

    `raw_dir`: the folder with data_batch_1.bin .. data_batch_5.bin, each as it is or compressed with xz (.bin.xz), in it
    or in a subfolder `cifar10`; "" is the environment variable DDPM_JAX_RAW. Unpacking takes ten seconds each time.

    Raises UserError for an unknown split, and for missing or damaged files.
    """
    if split not in _SPLITS:
        raise UserError(f"cifar10_raw has the splits {', '.join(sorted(_SPLITS))}; found split {split!r}.")
    paths = _find(raw_dir)
    parts = list(decoders().map(_read, paths if split == "train" else paths[-1:]))
    images, labels = (np.concatenate(arrays)[_SPLITS[split]] for arrays in zip(*parts, strict=True))
    source = Source({"image": images, "label": labels}, num_classes=10)
    identity = {"set": "cifar10_raw", "split": split, "examples": len(images), "classes": list(NAMES)}
    return source._replace(identity=identity | {"digest": digest_of_examples(source.gather, len(images))})


def decode(data: bytes, origin: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, 32, 32, 3], labels int32 [N]) of a batch file's records. Raises UserError naming the origin."""
    if not data or len(data) % RECORD:
        raise UserError(
            f"{origin} holds {len(data)} bytes, which are not whole CIFAR-10 records of {RECORD}. "
            "Replace it by the official file."
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int32)
    if labels.max() > 9:
        raise UserError(f"{origin} has a label {labels.max()}; CIFAR-10's lie in 0 .. 9. Replace it by the official file.")
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with files.open_existing(path, follow=True) as file, lzma.open(file) if path.suffix == ".xz" else file as content:
            data = content.read(BATCH * RECORD + 1)  # one more than there may be: a small file can hold a lot
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}). Replace it by the official file.") from error
    images, labels = decode(data, str(path))
    if len(images) != BATCH:
        raise UserError(f"{path} holds {len(images)} images instead of {BATCH}. Replace it by the official file.")
    return images, labels


def _find(raw_dir: str) -> list[Path]:
    """The five batches' paths; a file as it is goes before a compressed one."""
    given = raw_dir or os.environ.get(RAW_VARIABLE, "")
    wanted = f"{_BATCHES[0]} .. {_BATCHES[-1]} (of cifar-10-binary.tar.gz; compressed with xz as .bin.xz will do)"
    if not given:
        raise UserError(
            f"cifar10_raw reads {wanted}: pass their folder as raw_dir (--config.data.raw_dir=FOLDER) or in the environment "
            f"variable {RAW_VARIABLE}. Both are unset."
        )
    folders = [Path(given).expanduser() / "cifar10", Path(given).expanduser()]
    missing = {}
    for folder in folders:
        places = [[path for path in (folder / name, folder / f"{name}.xz") if path.is_file()] for name in _BATCHES]
        if all(places):
            return [found[0] for found in places]
        missing[folder] = [name for name, found in zip(_BATCHES, places, strict=True) if not found]
    nearest = min(folders, key=lambda folder: len(missing[folder]))
    origin = f"raw_dir={raw_dir!r}" if raw_dir else f"{RAW_VARIABLE}={given!r}"
    raise UserError(
        f"{origin} lacks files of cifar10_raw (looked in {folders[0]} and {folders[1]}; missing: "
        f"{', '.join(missing[nearest])}). Put {wanted} into one of them."
    )
