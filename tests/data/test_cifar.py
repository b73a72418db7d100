"""CIFAR-10 in both ways, on made-up files of the official form, and on the real batches where they are at hand."""

import hashlib
import io
import lzma
import os
import tarfile
from pathlib import Path

import chex
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddpm_jax.data import SOURCES, cifar, tfds_images
from ddpm_jax.errors import UserError

BATCHES = [f"data_batch_{i}.bin" for i in range(1, 6)]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
OFFICIAL = os.environ.get("DDPM_JAX_RAW", "")  # read before the fixture below hides it


@pytest.fixture(autouse=True)
def no_raw_variable(monkeypatch):
    monkeypatch.delenv("DDPM_JAX_RAW", raising=False)


def image(number):
    """The red values are the pixel's row, the green its column, the blue the image's number."""
    row, column = np.mgrid[:32, :32]
    return np.stack([row, column, np.full((32, 32), number)], -1).astype(np.uint8)


def record(number, label):
    """Written down byte by byte: the label, then each colour's plane by rows."""
    pixels = image(number)
    planes = [int(pixels[row, column, colour]) for colour in range(3) for row in range(32) for column in range(32)]
    return bytes([label, *planes])


def batch(first, count):
    return b"".join(record(number, number % 10) for number in range(first, first + count))


@pytest.fixture(scope="module")
def files():
    """{name: bytes} of five batches of 4 images, numbered through, and a test batch of 3."""
    return {name: batch(4 * i, 4) for i, name in enumerate(BATCHES)} | {
        "test_batch.bin": batch(20, 3),
        "batches.meta.txt": "\n".join(NAMES).encode() + b"\n\n",
    }


def assert_holds(source, numbers):
    np.testing.assert_array_equal(source.arrays["image"], [image(number) for number in numbers])
    np.testing.assert_array_equal(source.arrays["label"], [number % 10 for number in numbers])
    assert (source.arrays["image"].dtype, source.arrays["label"].dtype) == (np.uint8, np.int32)
    assert (source.num_classes, source.image_shape, source.num_examples) == (10, (32, 32, 3), len(numbers))


# From the batches


@pytest.fixture
def small(monkeypatch):
    """Batches of 4 images, of which the last 3 of all are held out."""
    monkeypatch.setattr(cifar, "BATCH", 4)
    monkeypatch.setattr(cifar, "HELD_OUT", 3)
    monkeypatch.setattr(cifar, "_SPLITS", {"train": slice(0, -3), "test": slice(-3, None), "validation": slice(-3, None)})


def write(folder, files, packed=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name in BATCHES:
        if name in packed:
            (folder / f"{name}.xz").write_bytes(lzma.compress(files[name], preset=0))
        else:
            (folder / name).write_bytes(files[name])
    return folder


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("packed", [(), BATCHES, BATCHES[1:4]], ids=["plain", "xz", "both"])
@pytest.mark.parametrize("place", ["raw_dir", "subfolder", "environment"])
def test_batches_are_read_in_order_wherever_they_are(files, tmp_path, monkeypatch, packed, place):
    write(tmp_path / "cifar10" if place == "subfolder" else tmp_path, files, packed)
    raw_dir = str(tmp_path)
    if place == "environment":
        monkeypatch.setenv("DDPM_JAX_RAW", raw_dir)
        raw_dir = ""
    load = SOURCES["cifar10_raw"]
    assert_holds(load(split="train", raw_dir=raw_dir), range(17))
    assert_holds(load(split="test", raw_dir=raw_dir), range(17, 20))
    assert_holds(load(split="validation", raw_dir=raw_dir), range(17, 20))


def test_five_thousand_are_held_out():
    assert (cifar.BATCH, cifar.HELD_OUT) == (10_000, 5_000)
    numbers = np.arange(50_000)
    np.testing.assert_array_equal(numbers[cifar._SPLITS["train"]], np.arange(45_000))
    for split in ("test", "validation"):
        np.testing.assert_array_equal(numbers[cifar._SPLITS[split]], np.arange(45_000, 50_000))


@pytest.mark.usefixtures("small")
def test_missing_and_damaged_batches_are_told(files, tmp_path, monkeypatch):
    def message(**options):
        with pytest.raises(UserError) as error:
            cifar.load_raw(**({"split": "train", "raw_dir": str(tmp_path)} | options))
        return str(error.value)

    assert "DDPM_JAX_RAW" in message(raw_dir="") and "data.raw_dir" in message(raw_dir="")
    write(tmp_path, files)
    (tmp_path / BATCHES[2]).unlink()
    text = message()
    assert f"missing: {BATCHES[2]})" in text and str(tmp_path / "cifar10") in text
    monkeypatch.setenv("DDPM_JAX_RAW", str(tmp_path))
    assert f"missing: {BATCHES[2]})" in message(raw_dir="")
    for content, what in [
        (files[BATCHES[2]][:-1], "not whole CIFAR-10 records"),
        (b"", "not whole CIFAR-10 records"),
        (files[BATCHES[2]][: 3 * cifar.RECORD], "3 images instead of 4"),
        (b"\x0a" + files[BATCHES[2]][1:], "a label 10"),
    ]:
        (tmp_path / BATCHES[2]).write_bytes(content)
        assert what in message() and str(tmp_path / BATCHES[2]) in message()
    (tmp_path / BATCHES[2]).unlink()
    (tmp_path / f"{BATCHES[2]}.xz").write_bytes(lzma.compress(files[BATCHES[2]])[:-20])
    assert f"{BATCHES[2]}.xz cannot be read" in message()
    assert "test, train, validation; found split 'all'" in message(split="all")


@pytest.mark.thorough
def test_the_real_batches():
    for folder in (Path(OFFICIAL) / "cifar10", Path(OFFICIAL)):
        if OFFICIAL and (folder / f"{BATCHES[4]}.xz").exists():
            break
    else:
        pytest.skip("DDPM_JAX_RAW names no folder with CIFAR-10's batches, packed with xz")
    source = cifar.load_raw(split="test", raw_dir=str(folder))  # of the fifth batch alone: all five take ten seconds
    chex.assert_shape(source.arrays["image"], (5000, 32, 32, 3))
    data = lzma.decompress((folder / f"{BATCHES[4]}.xz").read_bytes())
    for i in (0, 1, 4999):
        at = (5000 + i) * 3073
        assert source.arrays["label"][i] == data[at]
        for row, column, colour in [(0, 0, 0), (3, 17, 1), (31, 31, 2)]:
            assert source.arrays["image"][i, row, column, colour] == data[at + 1 + 1024 * colour + 32 * row + column]
    # What no mistake in the order of bytes keeps: neighbours in a photograph are alike, down and across.
    pixels = source.arrays["image"].astype(int)
    assert np.abs(np.diff(pixels, axis=1)).mean() < 20 and np.abs(np.diff(pixels, axis=2)).mean() < 20
    assert np.bincount(source.arrays["label"]).min() > 400


# Through TFDS


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name in ("readme.html", *files):
            data = files.get(name, b"not an image")
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def register(monkeypatch, path):
    """Lets TFDS's CIFAR-10 be the archive at `path`, with its checksum registered, and no server behind its address."""
    size, checksum = tfds.core.utils.Size(path.stat().st_size), hashlib.sha256(path.read_bytes()).hexdigest()
    url = f"http://127.0.0.1:9/{path.name}"
    with tfds.core.registered.skip_registration():

        class Cifar10(tfds.image_classification.Cifar10):
            name = "cifar10"
            url_infos = {url: tfds.download.checksums.UrlInfo(size=size, checksum=checksum, filename=path.name)}

    monkeypatch.setattr(tfds.image_classification, "Cifar10", Cifar10)


def test_the_archive_through_tfds(files, tmp_path, monkeypatch):
    raw, root = tmp_path / "raw", tmp_path / "tfds"
    raw.mkdir()
    write_archive(raw / "cifar-10-binary.tar.gz", files)
    register(monkeypatch, raw / "cifar-10-binary.tar.gz")
    for split, numbers in (("train", range(20)), ("test", range(20, 23))):
        source = SOURCES["cifar10"](split=split, data_dir=str(root), raw_dir=str(raw))
        order = np.argsort(source.arrays["image"][:, 0, 0, 2])  # TFDS stores them in an order of its own
        assert_holds(source._replace(arrays=source.gather(order)), numbers)
    # The stock reader finds all that the stock builder would have written.
    builder = tfds.builder_from_directory(root / "cifar10" / "3.0.2", file_format="array_record")
    assert builder.info.features["label"].names == NAMES
    examples = tfds.data_source("cifar10", split="train", data_dir=root, download=False)
    assert sorted((e["id"], int(e["image"][0, 0, 2])) for e in examples) == [(f"train_{i:05d}".encode(), i) for i in range(20)]


def test_an_archive_without_a_batch_is_told(files, tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_archive(path, {name: data for name, data in files.items() if name != BATCHES[3]})
    with pytest.raises(UserError, match=f"{path} lacks {BATCHES[3]}"):
        tfds_images.SETS["cifar10"].decode("train", [path])


def test_the_table_knows_the_official_archive():
    (url,) = tfds.image_classification.Cifar10.url_infos
    assert tfds_images.SETS["cifar10"].files == {"train": (url.rsplit("/", 1)[1],), "test": (url.rsplit("/", 1)[1],)}
