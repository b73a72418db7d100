import hashlib
import json
import os
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from ddpm_jax.errors import UserError
from ddpm_jax.runs import checkpoints, stores
from ddpm_jax.training.step import State


def state(step):
    """A state with nesting, scalars and several types; incompressible, so that every byte on disk carries data."""
    random = np.random.default_rng(step)
    params = {
        "params": {"Dense_0": {"kernel": random.normal(size=(40, 50)).astype(np.float32), "bias": np.zeros(3, np.float32)}}
    }
    return State(np.asarray(step, np.int32), params, ({"count": np.asarray(step, np.int32)}, ()), params)


def saved(directory, steps=(4, 8), **options):
    manager = checkpoints.open_manager(directory, **({"keep_last": 2} | options))
    for step in steps:
        checkpoints.save(manager, step, jax.tree.map(jnp.asarray, state(step)), {"note": step})
    manager.wait_until_finished()
    return manager


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_round_trip_is_exact_and_gives_numpy(tmp_path):
    step, restored, meta = checkpoints.restore_latest(saved(tmp_path / "checkpoints"), state(0))
    assert step == 8 and meta == {"note": 8}
    assert_same(restored, state(8))
    assert all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in jax.tree.leaves(restored))


def test_a_reader_of_a_run_sees_the_same_and_writes_nothing(tmp_path):
    saved(tmp_path / "checkpoints").close()
    before = sorted(tmp_path.rglob("*"))
    step, restored, _ = checkpoints.restore_latest(
        checkpoints.open_manager(tmp_path / "checkpoints", read_only=True), jax.eval_shape(lambda: state(0))
    )
    assert step == 8 and sorted(tmp_path.rglob("*")) == before
    assert_same(restored, state(8))


def test_damage_of_any_file_is_noticed_and_the_one_before_is_used(tmp_path):
    """A byte flipped, the file cut short, emptied, removed, or a link in its place, in every file one after the other.

    But for the two that orbax writes after the sums, for itself: there the state is the one that was saved.
    """
    folder = tmp_path / "checkpoints" / "8"
    saved(tmp_path / "checkpoints").close()
    random = np.random.default_rng(0)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[random.integers(len(content))] ^= 1 << random.integers(8)
        for damaged in (flipped, content[: len(content) // 2], b"", None, Path("/etc/hostname")):
            path.unlink()
            if isinstance(damaged, Path):
                path.symlink_to(damaged)
            elif damaged is not None:
                path.write_bytes(damaged)
            said = []
            if isinstance(damaged, Path) and path.parent == folder:  # refused before orbax reads it
                with pytest.raises(UserError, match=f"{path.name} is a link, and a run directory must hold none"):
                    checkpoints.open_manager(tmp_path / "checkpoints", 2)
                step, restored, said = 4, state(4), ["step 8 is damaged"]
            else:
                manager = checkpoints.open_manager(tmp_path / "checkpoints", 2)
                step, restored, _ = checkpoints.restore_latest(manager, state(0), report=said.append)
                manager.close()
            harmless = path.parent == folder and path.name in checkpoints.UNSUMMED
            assert_same(restored, state(step))
            assert (step == 4 and "step 8 is damaged" in said[0]) or (step == 8 and harmless), (path, damaged)
            path.unlink(missing_ok=True)
            path.write_bytes(content)
    assert checkpoints.restore_latest(saved(tmp_path / "others"), state(0))[0] == 8


@pytest.mark.parametrize("part", ["state", "notes"])
def test_damage_is_noticed_without_the_sums_too(tmp_path, part):
    """As in checkpoints of older versions; the damaged one is moved away, and its step can be saved again."""
    saved(tmp_path / "checkpoints").close()
    (tmp_path / "checkpoints" / "8" / checkpoints.SUMS).unlink()
    path = largest_file(tmp_path / "checkpoints" / "8" / part)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    said = []
    manager = checkpoints.open_manager(tmp_path / "checkpoints", 2)
    step, restored, _ = checkpoints.restore_latest(manager, state(0), report=said.append, set_aside=True)
    assert step == 4 and "step 8 is damaged" in said[0]
    assert_same(restored, state(4))
    assert (tmp_path / "damaged" / "8").is_dir()
    checkpoints.save(manager, 8, state(8), {})
    manager.wait_until_finished()
    assert checkpoints.restore_latest(manager, state(0))[0] == 8


def test_all_damaged_is_an_error(tmp_path):
    manager = saved(tmp_path / "checkpoints", steps=(4,))
    path = largest_file(tmp_path / "checkpoints" / "4" / "state")
    path.write_bytes(path.read_bytes()[:10])
    for _ in range(2):  # nothing is moved, so that the same command does not start from nothing the next time
        with pytest.raises(UserError, match="None of the checkpoints.*steps 4"):
            checkpoints.restore_latest(manager, state(0), report=lambda _: None, set_aside=True)


def test_the_meta_is_that_of_the_moment(tmp_path):
    """The files are written in the background, while the caller goes on with its lists."""
    manager = checkpoints.open_manager(tmp_path / "checkpoints")
    meta = {"pending": {"loss": [1.0, 2.0]}}
    checkpoints.save(manager, 1, state(1), meta)
    meta["pending"].clear()
    manager.wait_until_finished()
    assert checkpoints.restore_latest(manager, state(0))[2] == {"pending": {"loss": [1.0, 2.0]}}


def test_none_where_there_is_none(tmp_path):
    assert checkpoints.restore_latest(checkpoints.open_manager(tmp_path / "checkpoints"), state(0)) is None


def test_nothing_non_finite_is_saved(tmp_path):
    manager = saved(tmp_path / "checkpoints")
    bad = state(12)
    bad.params["params"]["Dense_0"]["kernel"][3, 4] = np.nan
    with pytest.raises(ValueError, match=r"params\.params\.Dense_0\.kernel is not finite at step 12"):
        checkpoints.save(manager, 12, bad, {})
    manager.wait_until_finished()
    assert manager.latest_step() == 8


def test_the_last_and_every_mth_are_kept(tmp_path):
    manager = saved(tmp_path / "checkpoints", steps=range(2, 14, 2), keep_last=2, keep_every=4)
    assert sorted(manager.all_steps()) == [4, 8, 10, 12]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    manager = saved(tmp_path / "checkpoints")
    other = state(0)
    other.params["params"]["Dense_1"] = {"kernel": np.zeros(2, np.float32)}
    with pytest.raises(UserError, match="another network or optimizer.*Dense_1"):
        checkpoints.restore_latest(manager, other)
    other = state(0)._replace(
        ema={"params": {"Dense_0": {"kernel": np.zeros((2, 2), np.float32), "bias": np.zeros(3, np.float32)}}}
    )
    with pytest.raises(UserError, match=r"ema.*kernel.*\[40, 50\].*\[2, 2\]"):
        checkpoints.restore_latest(manager, other)


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    """What a kill in mid-save leaves: a folder with orbax's temporary name."""
    saved(tmp_path / "checkpoints").close()
    (tmp_path / "checkpoints" / "12.orbax-checkpoint-tmp-1").mkdir()
    manager = checkpoints.open_manager(tmp_path / "checkpoints")
    assert checkpoints.restore_latest(manager, state(0))[0] == 8


def test_a_reader_follows_the_process_that_trains(tmp_path):
    """It may delete what the reader has listed; then the newer ones are read."""
    writer = saved(tmp_path / "checkpoints", steps=(4, 8))
    reader = checkpoints.open_manager(tmp_path / "checkpoints", read_only=True)
    assert reader.all_steps() == [4, 8]
    for step in (12, 16):
        checkpoints.save(writer, step, state(step), {})
    writer.wait_until_finished()
    said = []
    step, restored, _ = checkpoints.restore_latest(reader, state(0), report=said.append)
    assert step == 16 and not said
    assert_same(restored, state(16))


def rewrite_notes(folder, notes):
    """Notes of one's own, with checksums that are right."""
    text = json.dumps(notes) if isinstance(notes, dict) else notes
    (path,) = (folder / "notes").glob("metadata")
    path.write_text(json.dumps({"notes": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    (folder / checkpoints.SUMS).unlink()


class Hostile:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["PICKLED"],)


def test_a_strangers_checkpoint_runs_no_code_and_leads_nowhere(tmp_path, monkeypatch):
    """Pickles in the place of files and leaves; paths out of the directory; notes that are something else; a pipe."""
    monkeypatch.setenv("PICKLED", str(tmp_path / "pickled"))
    saved(tmp_path / "checkpoints", steps=(8,)).close()
    folder = tmp_path / "checkpoints" / "8"
    good = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    notes = json.loads(json.loads((folder / "notes" / "metadata").read_text())["notes"])
    np.save(tmp_path / "pickle.npy", np.array([Hostile()], dtype=object), allow_pickle=True)
    pickled = (tmp_path / "pickle.npy").read_bytes()

    def restore():
        """The state, or None for a UserError; afterwards the files are as they were."""
        try:
            manager = checkpoints.open_manager(tmp_path / "checkpoints", read_only=True)
            return checkpoints.restore_latest(manager, state(0), report=lambda _: None)[1]
        except UserError as error:
            words = "can be read", "has format", "another network", "must hold none"
            assert any(word in str(error) for word in words), error
        finally:
            for path, content in good.items():
                path.write_bytes(content)

    for path in good:
        (folder / checkpoints.SUMS).unlink()
        path.write_bytes(pickled)
        restored = restore()
        if restored is not None:  # the file was not needed
            assert_same(restored, state(8))
    for hostile in (
        notes | {"sha256": notes["sha256"] | {"../../../outside": "0" * 64}},
        notes | {"sha256": {f"../{name}": digest for name, digest in notes["sha256"].items()}},
        notes | {"sha256": 3},
        notes | {"format": {"$": "!!python/object/apply:os.mkdir [pickled]"}},
        {},
        "[" * 100_000,
        "!!python/object/apply:os.mkdir [pickled]",
    ):
        rewrite_notes(folder, hostile)
        assert restore() is None
    os.rename(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert restore() is None
    folder.unlink()
    os.rename(tmp_path / "elsewhere", folder)
    os.mkfifo(folder / "state" / "pipe")
    assert restore() is None
    assert not (tmp_path / "pickled").exists() and not (tmp_path / "outside").exists()


def store_of(folder):
    place = {"driver": "file", "path": f"{folder / 'state'}/"}
    return tensorstore.KvStore.open({"driver": "ocdbt", "base": place}).result()


def declare(folder, key, **changes):
    """Changes what is declared of an array, with checksums that are right."""
    store = store_of(folder)
    head = json.loads(store.read(f"{key}/.zarray").result().value)
    store.write(f"{key}/.zarray", json.dumps(head | changes).encode()).result()
    (folder / checkpoints.SUMS).write_text(checkpoints._sums(folder))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"shape": [10**11], "chunks": [10**11]}, r"is float32\[100000000000\], but this config makes it float32\[40, 50\]"),
        ({"shape": [10**6, 10**5]}, r"is float32\[1000000, 100000\], but"),
        ({"dtype": "<f8"}, r"is float64\[40, 50\], but"),
        ({"chunks": [10**6, 10**5]}, "None of the checkpoints"),
        ({"shape": [-1, 50]}, "None of the checkpoints"),
        ({"dtype": "|O"}, "None of the checkpoints"),
    ],
)
def test_a_checkpoint_that_declares_more_than_any_memory_holds(changes, words, tmp_path):
    """Its sums are right, and so is all but a few bytes. Nothing of it is read: the test would end in SIGABRT."""
    saved(tmp_path / "checkpoints", steps=(8,)).close()
    declare(tmp_path / "checkpoints" / "8", "params.params.Dense_0.kernel", **changes)
    with pytest.raises(UserError, match=words):
        checkpoints.restore_latest(checkpoints.open_manager(tmp_path / "checkpoints", read_only=True), state(0))


def test_a_database_that_tensorstore_would_die_of(tmp_path, capsys):
    """JSON that it would parse by recursion until the stack ends, SIGSEGV; a node of some KB that it would unpack to GBs."""
    saved(tmp_path / "checkpoints", steps=(8,)).close()
    folder = tmp_path / "checkpoints" / "8"
    good = [size for path in (folder / "state").rglob("*") if path.is_file() for size in stores.unpacked(path.read_bytes())]
    assert len(good) >= 3 and set(good) == {2**17}  # of one block each

    def refused(words):
        (folder / checkpoints.SUMS).write_text(checkpoints._sums(folder))
        with pytest.raises(UserError, match="None of the checkpoints"):
            checkpoints.restore_latest(checkpoints.open_manager(tmp_path / "checkpoints", read_only=True), state(0))
        assert words in capsys.readouterr().out

    before = store_of(folder).read("params.params.Dense_0.kernel/.zarray").result().value
    for head in (b"[" * 50_000, b'{"a":' * 1_000 + b"1" + b"}" * 1_000, before + b" " * 2**16):
        store_of(folder).write("params.params.Dense_0.kernel/.zarray", head).result()
        refused("nested more than 64 deep" if len(head) < 2**16 else "an array is declared in 65")
    store_of(folder).write("params.params.Dense_0.kernel/.zarray", before).result()
    for form in stores.HEADS:  # in a file, which orbax takes where _METADATA says so
        path = folder / "state" / "params.params.Dense_0.kernel" / form
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"[" * 50_000)
        refused("nested more than 64 deep")
        path.unlink()
    blocks = (2**17 << 3 | 2).to_bytes(3, "little") + b"\0"  # of zeros
    for compression, packed in ((b"\0\1", b"\x28\xb5\x2f\xfd\x00\x38" + blocks * 5000), (b"\x80\0\1", b"\x50\x2a\x4d\x18")):
        content = compression + packed
        node = b"\x0c\xdb\x20\xde" + (12 + len(content)).to_bytes(8, "little") + content
        (folder / "state" / "d" / "node").write_bytes(b"before" + node)
        refused("d/node unpacks to more than" if len(packed) > 9 else "in another way than zstd's")


def test_pipes_and_nested_files_in_a_checkpoint(tmp_path):
    """In the place of any of its files: the checkpoint is damaged, or the file is not needed. Nothing hangs."""
    saved(tmp_path / "checkpoints", steps=(8,)).close()
    folder = tmp_path / "checkpoints" / "8"
    timer = threading.Timer(120, os._exit, (1,))
    timer.start()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for kind in ("pipe", "nested"):
            path.unlink()
            os.mkfifo(path) if kind == "pipe" else path.write_text("[" * 100_000)
            try:
                manager = checkpoints.open_manager(tmp_path / "checkpoints", read_only=True)
                assert_same(checkpoints.restore_latest(manager, state(0), report=lambda _: None)[1], state(8))
                assert kind == "nested" and path.name == "commit_success.txt" and path.parent == folder
            except UserError as error:
                assert "can be read" in str(error) or "is a pipe, a device or a socket" in str(error)
            path.unlink()
            path.write_bytes(content)
    timer.cancel()
