"""No link of a run directory is followed, nothing but regular files is opened, and what is read is read within limits."""

import ast
import os
import socket
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax import files
from ddpm_jax.data import folder
from ddpm_jax.diffusion.sample import Sampled
from ddpm_jax.errors import UserError
from ddpm_jax.runs import logs, run_directory, sampling
from ddpm_jax.runs.parts import Parts

PACKAGE = Path(ddpm_jax.__file__).parent
OPENS = {"open", "read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "makedirs", "touch"}
ARRAYS = {"np.load", "np.save", "np.savez", "np.savez_compressed", "np.memmap", "np.fromfile", "json.load", "json.dump"}
OTHERS = {
    "platform.py": {"Path(folder).mkdir"},  # of the compilation cache
    "runs/stores.py": {"tensorstore.KvStore.open"},  # of a folder in which there are files alone
    "runs/parts.py": {"np.savez"},  # this and the following: of a file that `files` has opened
    "writers.py": {"archive.open"},
    "data/folder.py": {"Image.open"},
    "data/cifar.py": {"lzma.open"},
    "data/tfds_prepare.py": {"gzip.open", "tarfile.open"},
    "data/tfds_read.py": {"np.savez"},
}


@pytest.fixture(autouse=True)
def no_hanging():
    """A pipe that is opened after all ends the tests, which would hang for ever."""
    timer = threading.Timer(60, os._exit, (1,))
    timer.start()
    yield
    timer.cancel()


def make(kind, path, precious):
    """Puts something of this kind at the path."""
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as a:
            here = os.open(path.parent, os.O_RDONLY)
            a.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)


def test_one_module_opens_files():
    """So that what holds there, no links and regular files alone, holds everywhere."""
    for path in PACKAGE.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        texts = {ast.unparse(call) for call in calls if getattr(call, "attr", getattr(call, "id", "")) in OPENS}
        texts |= ARRAYS & {ast.unparse(call) for call in calls}
        name = path.relative_to(PACKAGE).as_posix()
        more = {text for text in texts if not text.startswith("files.")} - OTHERS.get(name, set())
        assert name == "files.py" or not more, f"{name} calls {more}: call ddpm_jax.files, or add to OTHERS with the reason"


PLACES = ["lock", "config.json", "metrics.jsonl", "samples", "samples/a.json", "checkpoints", "tensorboard", "evaluations", "x"]


@pytest.mark.parametrize("kind", ["link", "pipe", "socket"])
def test_nothing_but_files_and_folders_in_a_run_directory(kind, tmp_path):
    """Also in one that holds no config yet, which a new run could be started in."""
    (tmp_path / "precious").write_text("kept")
    for new in (True, False):
        for place in PLACES:
            workdir = tmp_path / f"{new}-{place.replace('/', '-')}"
            files.folder(workdir, "samples")
            if not new:
                run_directory.write(workdir, configs.base(), (8, 8, 1))
            make(kind, workdir / place, tmp_path / "precious")
            with pytest.raises(UserError, match=f"{place} is a .*and a run directory must hold none"):
                if new:
                    with run_directory.held(workdir):
                        pass
                else:
                    run_directory.read(workdir)
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("kind", ["link", "pipe", "socket"])
def test_no_function_opens_them_either(kind, tmp_path):
    """Whoever reads or writes: nothing is followed, nothing hangs."""
    precious, path = tmp_path / "precious", tmp_path / "run" / "metrics.jsonl"
    precious.write_text("kept")
    path.parent.mkdir()
    make(kind, path, precious)
    with pytest.raises(OSError, match="It is a"):
        files.open_existing(path)
    with pytest.raises(OSError, match="It is a"):
        files.open_to_append(path)
    for read in (files.read_text, files.read_json, lambda path: files.read_npz(path, list)):
        with pytest.raises(files.Unreadable, match="metrics.jsonl cannot be read .*It is a"):
            read(path)
    with pytest.raises(UserError, match="metrics"):
        logs.Log(path.parent, 0).scalars(1, {"loss": 0.5}, (0.0, 1.0))
    files.write_text(path, "another")
    assert path.read_text() == "another" and path.is_file() and not path.is_symlink() and precious.read_text() == "kept"
    make(kind, path.with_name("samples"), tmp_path)
    with pytest.raises(OSError, match="It is a link|File exists"):
        files.folder(path.parent, "samples")
    make(kind, path.with_name("facts.json"), precious)
    assert sampling.read_facts(path.parent, "facts") == {}


def test_links_that_a_user_names_are_followed(tmp_path):
    """An image elsewhere, or a workdir on another disk."""
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "b.png").symlink_to(tmp_path / "a.png")
    assert folder.exactly(tmp_path / "images" / "b.png", (9, 9, 1)).shape == (9, 9, 1)
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    run_directory.write(tmp_path / "here" / "run", configs.base(), (8, 8, 1))
    assert run_directory.read(tmp_path / "here" / "run")[1] == (8, 8, 1)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_an_image_that_is_no_file_is_skipped(kind, tmp_path, capsys):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    make(kind, tmp_path / "b.png", None)
    assert folder.load(split="train", path=str(tmp_path), image_size=8).num_examples == 1
    assert "b.png (It is a pipe, a device or a socket, and not a file)" in capsys.readouterr().out


def test_two_writers_of_a_file(tmp_path):
    """Neither fails, and what a reader finds is what one of them wrote."""
    path, failures = tmp_path / "file", []
    texts = [letter * 10_000 for letter in "ab"]
    files.write_text(path, texts[0])

    def write(text):
        try:
            for _ in range(100):
                files.write_text(path, text)
                if files.read_text(path) not in texts:
                    raise ValueError("torn")
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failures and [found.name for found in tmp_path.iterdir()] == ["file"]


def test_what_killed_processes_left_is_cleared(tmp_path):
    """Not what another process, one that samples beside the training, is writing."""
    ages = {".0123456789abcdef.tmp": 4000, ".89abcdef01234567.tmp": 4000, ".fedcba9876543210.tmp": 10, "mine.tmp": 4000}
    for name, age in ages.items():
        (tmp_path / name).mkdir() if name.startswith(".8") else (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with run_directory.held(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".fedcba9876543210.tmp", "mine.tmp", "lock"}


@pytest.fixture
def parts(tmp_path):
    """Samples with frames, drawn and not written yet; beside them the empty folder samples."""
    film = np.linspace(-1, 1, 5 * 4 * 64).reshape(5, 4, 8, 8, 1)
    (tmp_path / "samples").mkdir()
    parts = Parts(tmp_path / "drawn", "x", "as it was drawn", 4, 4)
    parts.add(0, Sampled(film[-1], 5, film))
    return parts


@pytest.mark.parametrize("way, count", [("npz", 5), ("png", 4)])
def test_a_full_disk_leaves_all_files_of_the_samples_or_none(way, count, parts, tmp_path, monkeypatch):
    """Whichever of them it strikes; old ones of that name stay."""
    folder = tmp_path / "samples"

    def contents():
        return {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")}

    sampling.write_samples(folder, "old", parts, {}, way=way)
    old = contents()
    for name in ("old", "new"):
        for place in range(count):
            left = [place]

            def fsync(_, left=left):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(28, "No space left on device")

            monkeypatch.setattr(files.os, "fsync", fsync)
            with pytest.raises(OSError, match="No space left"):
                sampling.write_samples(folder, name, parts, {"seed": 1}, way=way)
            assert contents() == old


def test_samples_of_which_a_file_is_gone_are_not_complete(parts, tmp_path):
    """So the run draws them again."""
    folder, facts = tmp_path / "samples", {"seed": 1}
    for path in sampling.write_samples(folder, "name", parts, facts):
        assert sampling.read_facts(folder, "name") == facts
        content = path.read_bytes()
        path.unlink()
        assert sampling.read_facts(folder, "name") == {}
        path.write_bytes(content)
    for content in ("[1]", "{", '{"files": 3}', '{"files": [3]}', '{"files": {"a": 1}}'):
        (folder / "name.json").write_text(content)
        assert sampling.read_facts(folder, "name") == {}
    (folder / "name.json").write_text('{"seed": 1}')  # of before
    assert sampling.read_facts(folder, "name") == facts
    (folder / "name.npz").unlink()
    assert sampling.read_facts(folder, "name") == {}


def test_a_folder_of_samples_of_which_one_is_gone_is_not_complete(parts, tmp_path):
    facts = {"sampler": {"num_samples": 4}}
    paths = sampling.write_samples(tmp_path, "name", parts, facts, way="png")
    assert sampling.read_facts(tmp_path, "name") == facts
    (paths[1] / "000002.png").unlink()
    assert sampling.read_facts(tmp_path, "name") == {}
    assert {"num_samples", "save"} <= set(sampling.how(configs.base())["sampler"])


def test_a_part_of_a_stranger_is_not_read_before_its_identity(parts):
    """Not what is beside it, nor itself where it is no identity."""
    (path,) = parts.folder.iterdir()
    large = np.zeros(2**26, np.uint8)
    for arrays in ({"identity": "another", "evaluations": large}, {"identity": large}):
        np.savez_compressed(path, **arrays)
        tracemalloc.start()
        assert parts.done() == 0 and tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_other_files_than_arrays(tmp_path):
    """A .npy or a text named .npz, pickles, heads that lie, and arrays of more than was said. Nothing is read of them."""
    path = tmp_path / "a.npz"

    def choose(heads):
        if heads["samples"].shape[1:] != (8, 8, 1):
            raise UserError("another shape")
        return ["samples"]

    def refused(words, choose=choose, **options):
        with pytest.raises(UserError, match=words):
            files.read_npz(path, choose, **options)

    refused("a.npz cannot be read .there is no such file")
    np.save(tmp_path / "b.npy", np.zeros((4, 8, 8, 1), np.uint8))
    (tmp_path / "b.npy").rename(path)
    refused("cannot be read .BadZipFile")
    path.write_text("no archive")
    refused("cannot be read .BadZipFile")
    np.savez(path, other=np.zeros(3))
    refused("cannot be read .KeyError")
    np.savez(path, samples=np.array([{}], object))
    refused("which is not what it holds")
    samples = np.zeros((40, 8, 8, 1), np.uint8)
    np.savez_compressed(path, samples=samples)
    np.testing.assert_array_equal(files.read_npz(path, choose)["samples"], samples)
    refused("take 2560 bytes, more than 2559", limit=2559)
    with zipfile.ZipFile(path) as archive:
        content = archive.read("samples.npy")
    for shape in ("(99999999999, 8, 8, 1), ", "(-1, 8, 8, 1), "):  # the head's spaces make room for them
        changed = content.replace(b"(40, 8, 8, 1), }", shape.encode() + b"}")
        head = changed[: changed.index(b"}") + 1].ljust(127) + b"\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("samples.npy", head + bytes(2560))
        refused("which is not what it holds")
    head = ("-" * 9000 + "1").ljust(9077).encode() + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("samples.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    refused("Header info length .9078. is large")
    np.savez_compressed(path, samples=np.zeros((2**18, 16, 16, 1), np.uint8))  # 64 MiB in some 64 KiB
    tracemalloc.start()
    refused("another shape")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples.npy", b"\x93NUMPY\x02\x00" + (2**25).to_bytes(4, "little") + b" " * 2**25)
    tracemalloc.reset_peak()
    refused("format .2, 0.")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
