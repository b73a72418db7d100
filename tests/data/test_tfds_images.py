"""The whole path of a TFDS set on a made-up MNIST of a few images, and on the real one where its files are at hand."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import chex
import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddpm_jax.data import SOURCES, tfds_images, tfds_prepare, tfds_read
from ddpm_jax.errors import UserError

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
SIZES = {"train": 37, "test": 11}
CLOSED = "http://127.0.0.1:9/"  # nothing listens there: refused at once


OFFICIAL = os.environ.get("DDPM_JAX_RAW", "")  # read before the fixture below hides it


def official(name):
    """The folder with the publisher's files of `name`; skips the test where they are not at hand."""
    for folder in (Path(OFFICIAL) / name, Path(OFFICIAL)):
        if OFFICIAL and all((folder / file).exists() for files in FILES.values() for file in files):
            return folder
    pytest.skip(f"DDPM_JAX_RAW names no folder with the official files of {name}")


@pytest.fixture(autouse=True)
def no_raw_variable(monkeypatch):
    monkeypatch.delenv("DDPM_JAX_RAW", raising=False)


def idx_bytes(array):
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.tobytes(), mtime=0)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder of made-up raw files, and the arrays in them by split."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    arrays = {}
    for split, (image_file, label_file) in FILES.items():
        images = rng.integers(0, 256, (SIZES[split], 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, SIZES[split], dtype=np.uint8)
        (folder / image_file).write_bytes(idx_bytes(images))
        (folder / label_file).write_bytes(idx_bytes(labels))
        arrays[split] = (images[..., None], labels)
    return folder, arrays


def register(monkeypatch, folder, url):
    """Lets TFDS's MNIST be the set in `folder`, published at `url`, with its checksums registered."""
    infos = {
        url + path.name: tfds.download.checksums.UrlInfo(
            size=tfds.core.utils.Size(path.stat().st_size),
            checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
            filename=path.name,
        )
        for path in folder.iterdir()
    }
    with tfds.core.registered.skip_registration():

        class MNIST(tfds.image_classification.MNIST):
            name = "mnist"
            url_infos = infos

    monkeypatch.setattr(tfds.image_classification, "MNIST", MNIST)


@pytest.fixture
def small(monkeypatch, raw):
    """(raw folder, arrays by split) with that set standing in for MNIST, and no server behind its address."""
    register(monkeypatch, raw[0], CLOSED)
    return raw


@pytest.fixture(scope="module")
def prepared_once(raw, tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch, raw[0], CLOSED)
        tfds_images.mnist(split="train", data_dir=str(root), raw_dir=str(raw[0]))
    shutil.rmtree(root / "mnist" / "ddpm_jax_cache")
    return root


@pytest.fixture
def prepared(prepared_once, tmp_path):
    """A private copy of a data_dir that holds the small set, prepared as array_record, without a cache."""
    return shutil.copytree(prepared_once, tmp_path / "tfds")


def pairs(images, labels):
    """The examples as a sorted list: TFDS stores them in an order of its own."""
    return sorted(zip([image.tobytes() for image in images], np.asarray(labels).tolist(), strict=True))


def assert_holds(source, images, labels):
    chex.assert_shape(source.arrays["image"], images.shape)
    assert (source.arrays["image"].dtype, source.arrays["label"].dtype) == (np.uint8, np.int32)
    assert source.num_classes == 10
    assert pairs(*source.arrays.values()) == pairs(images, labels)


def assert_same(first, second):
    assert first.num_classes == second.num_classes
    chex.assert_trees_all_equal(first.arrays, second.arrays, strict=True)


def to_tfrecord(root, shards=1):
    """Turns the prepared set under `root` into what TFDS with TensorFlow would have written, by hand."""
    from array_record.python.array_record_module import ArrayRecordReader

    folder = root / "mnist" / "3.0.1"
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        path = folder / f"mnist-{split['name']}.array_record-00000-of-00001"
        reader = ArrayRecordReader(str(path))
        parts = np.array_split(np.arange(reader.num_records()), shards)
        split["shardLengths"] = [str(len(part)) for part in parts]
        for i, part in enumerate(parts):
            name = f"mnist-{split['name']}.tfrecord-{i:05d}-of-{shards:05d}"
            with (folder / name).open("wb") as file:
                for record in reader.read(part.tolist()):
                    file.write(struct.pack("<QI", len(record), 0) + record + struct.pack("<I", 0))
        path.unlink()
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


# Preparing


@pytest.mark.parametrize("place", ["raw_dir", "subfolder", "environment"])
def test_prepares_from_raw_files(small, tmp_path, monkeypatch, place):
    folder, arrays = small
    raw_dir = str(folder)
    if place == "subfolder":
        shutil.copytree(folder, tmp_path / "raw" / "mnist")
        raw_dir = str(tmp_path / "raw")
        for files in FILES.values():
            for file in files:
                (tmp_path / "raw" / file).write_bytes(b"another set's file of that name")
    if place == "environment":
        monkeypatch.setenv("DDPM_JAX_RAW", raw_dir)
        raw_dir = ""
    root = tmp_path / "tfds"
    for split in ("train", "test"):
        assert_holds(SOURCES["mnist"](split=split, data_dir=str(root), raw_dir=raw_dir), *arrays[split])


def test_stock_tfds_reads_what_was_prepared(prepared, raw):
    source = tfds.data_source("mnist", split="train", data_dir=prepared, download=False)
    examples = [source[i] for i in range(len(source))]
    assert pairs(*zip(*((e["image"], e["label"]) for e in examples), strict=True)) == pairs(*raw[1]["train"])
    ours = tfds_images.mnist(split="train", data_dir=str(prepared))
    assert [e["label"] for e in examples] == ours.arrays["label"].tolist()


def test_a_tilde_and_the_default_folder(small, tmp_path, monkeypatch):
    from tensorflow_datasets.core import constants

    monkeypatch.setenv("HOME", str(tmp_path))
    tfds_images.mnist(split="test", data_dir="~/sets", raw_dir=str(small[0]))
    assert (tmp_path / "sets/mnist/3.0.1/dataset_info.json").exists()
    monkeypatch.setattr(constants, "DATA_DIR", str(tmp_path / "sets"))
    assert_holds(tfds_images.mnist(split="test"), *small[1]["test"])


@contextlib.contextmanager
def server(folder):
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{httpd.server_port}/"
        finally:
            httpd.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_downloads_and_later_needs_no_network(raw, tmp_path, monkeypatch):
    folder, arrays = raw
    with server(folder) as url:
        register(monkeypatch, folder, url)
        assert_holds(tfds_images.mnist(split="train", data_dir=str(tmp_path)), *arrays["train"])
    assert_holds(tfds_images.mnist(split="test", data_dir=str(tmp_path)), *arrays["test"])
    # The downloaded files are kept: preparing again works without the server.
    shutil.rmtree(tmp_path / "mnist")
    assert_holds(tfds_images.mnist(split="train", data_dir=str(tmp_path)), *arrays["train"])


def test_environment_folder_without_the_files_falls_back_to_download(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("DDPM_JAX_RAW", str(tmp_path / "nothing"))
    with server(raw[0]) as url:
        register(monkeypatch, raw[0], url)
        assert_holds(tfds_images.mnist(split="test", data_dir=str(tmp_path)), *raw[1]["test"])


def test_a_wrong_download_is_refused(raw, tmp_path, monkeypatch):
    shutil.copytree(raw[0], tmp_path / "www")
    (tmp_path / "www" / FILES["test"][0]).write_bytes(b"not that file")
    with server(tmp_path / "www") as url:
        register(monkeypatch, raw[0], url)
        with pytest.raises(UserError, match=FILES["test"][0]):
            tfds_images.mnist(split="train", data_dir=str(tmp_path / "tfds"))
    assert not (tmp_path / "tfds/mnist/3.0.1").exists()


def test_a_missing_file_on_the_server_is_told(raw, tmp_path, monkeypatch):
    shutil.copytree(raw[0], tmp_path / "www")
    (tmp_path / "www" / FILES["test"][0]).unlink()
    with server(tmp_path / "www") as url:
        register(monkeypatch, raw[0], url)
        with pytest.raises(UserError, match=f"{FILES['test'][0]}.*404"):
            tfds_images.mnist(split="train", data_dir=str(tmp_path / "tfds"))


@pytest.mark.usefixtures("small")
def test_no_network_is_told_at_once(tmp_path):
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        tfds_images.mnist(split="train", data_dir=str(tmp_path / "tfds"))
    assert time.monotonic() - start < 5
    for text in [str(tmp_path / "tfds" / "mnist"), "127.0.0.1:9", "DDPM_JAX_RAW", "configs/digits.py", *FILES["train"]]:
        assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tfds").exists()


def test_a_server_that_never_answers_is_given_up(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_prepare, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        register(monkeypatch, raw[0], f"http://127.0.0.1:{silent.getsockname()[1]}/")
        start = time.monotonic()
        with pytest.raises(UserError, match="answer"):
            tfds_images.mnist(split="train", data_dir=str(tmp_path))
        assert time.monotonic() - start < 5


def test_the_wait_for_a_server_is_under_ten_seconds():
    assert tfds_prepare.PROBE_SECONDS < 8


def test_missing_raw_files_are_listed(small, tmp_path):
    shutil.copytree(small[0], tmp_path / "raw")
    (tmp_path / "raw" / FILES["test"][1]).unlink()
    with pytest.raises(UserError) as error:
        tfds_images.mnist(split="train", data_dir=str(tmp_path), raw_dir=str(tmp_path / "raw"))
    message = str(error.value)
    assert FILES["test"][1] in message and FILES["train"][0] not in message
    assert str(tmp_path / "raw" / "mnist") in message


def test_a_wrong_raw_file_is_named(small, tmp_path):
    shutil.copytree(small[0], tmp_path / "raw")
    wrong = tmp_path / "raw" / FILES["train"][0]
    data = bytearray(wrong.read_bytes())
    data[len(data) // 2] ^= 1
    wrong.write_bytes(data)
    with pytest.raises(UserError, match=str(wrong)):
        tfds_images.mnist(split="train", data_dir=str(tmp_path / "tfds"), raw_dir=str(tmp_path / "raw"))
    assert not (tmp_path / "tfds/mnist/3.0.1").exists()


def test_an_unknown_split_lists_the_splits_before_any_work(small, tmp_path, prepared):
    with pytest.raises(UserError, match="test, train.*'validation'"):
        tfds_images.mnist(split="validation", data_dir=str(tmp_path / "new"), raw_dir=str(small[0]))
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="test, train.*'validation'"):
        tfds_images.mnist(split="validation", data_dir=str(prepared))


def test_a_file_in_the_place_of_the_folder_is_told(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        tfds_images.mnist(split="train", data_dir=str(tmp_path / "file"), raw_dir=str(small[0]))


PROCESS = """
import sys
from pathlib import Path
import pytest
import test_tfds_images as t
t.register(pytest.MonkeyPatch(), Path(sys.argv[1]), t.CLOSED)
t.tfds_images.mnist(split="train", data_dir=sys.argv[2], raw_dir=sys.argv[1])
assert "tensorflow" not in sys.modules
"""

KILLED = """
import os, signal
from tensorflow_datasets.core import dataset_info
dataset_info.DatasetInfo.write_to_directory = lambda *_a, **_k: os.kill(os.getpid(), signal.SIGKILL)
"""


def start(code, raw_dir, data_dir):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    command = [sys.executable, "-c", code, str(raw_dir), str(data_dir)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, text=True, **pipes)


@pytest.mark.thorough
def test_processes_side_by_side_print_one_line_and_need_no_tensorflow(raw, tmp_path):
    both = [start(PROCESS, raw[0], tmp_path) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out in ("", f"preparing mnist in {tmp_path} from {raw[0]}..., once\n")
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == ["3.0.1", "ddpm_jax_cache"]
    assert_holds(tfds_images.mnist(split="train", data_dir=str(tmp_path)), *raw[1]["train"])


def test_a_killed_preparation_is_repeated(small, tmp_path):
    # Killed at the last moment: all records are written, only the set's description is not.
    process = start(KILLED + PROCESS, small[0], tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == -9
    (left,) = (tmp_path / "mnist").iterdir()
    assert left.name.startswith("incomplete") and any(left.iterdir())
    assert_holds(tfds_images.mnist(split="train", data_dir=str(tmp_path), raw_dir=str(small[0])), *small[1]["train"])


def test_another_process_may_finish_first(small, tmp_path, prepared, monkeypatch):
    # The other one's finished folder appears while this one is reading the raw files.
    def decode(split, paths):
        if not (tmp_path / "late/mnist/3.0.1").exists():
            shutil.copytree(prepared / "mnist/3.0.1", tmp_path / "late/mnist/3.0.1")
        return row.decode(split, paths)

    row = tfds_images.SETS["mnist"]
    monkeypatch.setitem(tfds_images.SETS, "mnist", row._replace(decode=decode))
    source = tfds_images.mnist(split="train", data_dir=str(tmp_path / "late"), raw_dir=str(small[0]))
    assert_holds(source, *small[1]["train"])
    assert [path.name for path in (tmp_path / "late/mnist").glob("*incomplete*")] == []


def test_an_unfinished_version_folder_is_not_touched(small, tmp_path):
    (tmp_path / "mnist/3.0.1").mkdir(parents=True)
    (tmp_path / "mnist/3.0.1/keep").write_text("")
    with pytest.raises(UserError, match="Delete that folder"):
        tfds_images.mnist(split="train", data_dir=str(tmp_path), raw_dir=str(small[0]))
    assert (tmp_path / "mnist/3.0.1/keep").exists()


# Reading


@pytest.mark.parametrize("shards", [1, 3])
def test_a_tfrecord_set_reads_the_same(prepared, shards):
    expected = {split: tfds_images.mnist(split=split, data_dir=str(prepared)) for split in FILES}
    shutil.rmtree(prepared / "mnist" / "ddpm_jax_cache")
    to_tfrecord(prepared, shards)
    for split in FILES:
        assert_same(tfds_images.mnist(split=split, data_dir=str(prepared)), expected[split])


def test_another_version_is_read_and_array_record_preferred(prepared, monkeypatch):
    # No raw files and no server: whatever is there must do.
    monkeypatch.setattr(tfds_images, "prepare", lambda *_: pytest.fail("must not prepare"))
    expected = tfds_images.mnist(split="train", data_dir=str(prepared))
    old = prepared / "mnist" / "3.0.0"
    shutil.copytree(prepared / "mnist" / "3.0.1", old)
    (old / "dataset_info.json").write_text((old / "dataset_info.json").read_text().replace("3.0.1", "3.0.0"))
    newer = to_tfrecord(prepared)
    assert tfds_images.find_prepared(prepared / "mnist") == (old, "array_record")
    assert_same(tfds_images.mnist(split="train", data_dir=str(prepared)), expected)
    shutil.rmtree(old)
    assert tfds_images.find_prepared(prepared / "mnist") == (newer, "tfrecord")


@pytest.mark.parametrize("form", ["array_record", "tfrecord"])
def test_a_damaged_set_is_told(prepared, form):
    if form == "tfrecord":
        to_tfrecord(prepared)
    (shard,) = (prepared / "mnist/3.0.1").glob("mnist-train*")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match="delete that folder"):
        tfds_images.mnist(split="train", data_dir=str(prepared))


def test_a_set_that_lacks_records_is_told(prepared):
    (shard,) = to_tfrecord(prepared).glob("mnist-train*")
    data = shard.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    shard.write_bytes(data[length + 16 :])  # without its first record
    with pytest.raises(UserError, match="36 of 37 examples"):
        tfds_images.mnist(split="train", data_dir=str(prepared))


# The cache


def test_the_cache_gives_the_same_without_the_reader(prepared, monkeypatch):
    first = tfds_images.mnist(split="train", data_dir=str(prepared))
    monkeypatch.setattr(tfds_read, "_examples", lambda *_: pytest.fail("must come from the cache"))
    assert_same(tfds_images.mnist(split="train", data_dir=str(prepared)), first)
    assert [path.name for path in (prepared / "mnist/ddpm_jax_cache").iterdir()] == ["3.0.1-train.npz"]


def bad_caches():
    def rewrite(path, change):
        arrays = dict(np.load(path))
        np.savez(path, **change(arrays))

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return {
        "cut short": lambda path: path.write_bytes(path.read_bytes()[:-500]),
        "empty": lambda path: path.write_bytes(b""),
        "a flipped bit": flip,
        "fewer examples": lambda path: rewrite(path, lambda a: {**a, "image": a["image"][1:]}),
        "another type": lambda path: rewrite(path, lambda a: {**a, "image": a["image"].astype(np.int16)}),
        "other shards": lambda path: rewrite(path, lambda a: {**a, "image": 255 - a["image"], "shards": "[]"}),
        "a lost key": lambda path: rewrite(path, lambda a: {"image": a["image"]}),
        "pickled": lambda path: rewrite(path, lambda a: {**a, "label": a["label"].astype(object)}),
    }


@pytest.mark.parametrize("damage", bad_caches())
def test_a_cache_that_does_not_fit_is_made_again(prepared, monkeypatch, damage):
    first = tfds_images.mnist(split="train", data_dir=str(prepared))
    bad_caches()[damage](prepared / "mnist/ddpm_jax_cache/3.0.1-train.npz")
    assert_same(tfds_images.mnist(split="train", data_dir=str(prepared)), first)
    monkeypatch.setattr(tfds_read, "_examples", lambda *_: pytest.fail("must come from the new cache"))
    assert_same(tfds_images.mnist(split="train", data_dir=str(prepared)), first)


def test_a_folder_that_cannot_hold_a_cache_is_read_all_the_same(prepared, raw):
    (prepared / "mnist/ddpm_jax_cache").write_text("a file in its place")
    assert_holds(tfds_images.mnist(split="train", data_dir=str(prepared)), *raw[1]["train"])


# The real sets


@pytest.mark.parametrize(("name", "mean"), [("mnist", 33.318), ("fashion_mnist", 72.940)])
def test_the_table_knows_the_official_files(name, mean):
    """The addresses and checksums in TFDS are those of the files at hand (the slow rest is tested on MNIST only)."""
    folder = official(name)
    stock = getattr(tfds.image_classification, tfds_images.SETS[name].stock)
    for files in tfds_images.SETS[name].files.values():
        for file in files:
            (info,) = [info for url, info in stock.url_infos.items() if url.endswith("/" + file)]
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == info.checksum
    images, labels = tfds_images.SETS[name].decode("train", [folder / file for file in FILES["train"]])
    assert images.mean() == pytest.approx(mean, abs=1e-3)
    assert (images.shape, labels.shape) == ((60000, 28, 28, 1), (60000,))


@pytest.mark.thorough
def test_real_mnist(tmp_path):
    folder = official("mnist")
    sources = {split: SOURCES["mnist"](split=split, data_dir=str(tmp_path), raw_dir=str(folder)) for split in ("train", "test")}
    for split, num_examples in (("train", 60000), ("test", 10000)):
        image_file, label_file = FILES[split]
        # Parsed on its own: the header of an idx file is 4 bytes and 4 per axis.
        images = np.frombuffer(gzip.decompress((folder / image_file).read_bytes())[16:], np.uint8)
        labels = np.frombuffer(gzip.decompress((folder / label_file).read_bytes())[8:], np.uint8)
        chex.assert_shape(sources[split].arrays["image"], (num_examples, 28, 28, 1))
        assert_holds(sources[split], images.reshape(-1, 28, 28, 1), labels)
    # TFDS's own order, as its published MNIST 3.0.1 has it.
    assert sources["train"].arrays["label"][:10].tolist() == [4, 1, 0, 7, 8, 1, 2, 7, 1, 6]
