"""What is refused once the command line is understood (test_command.py has that): data, directories, checkpoints, machines.

Each by one paragraph that says what was wrong, what was found and what to do, with its exit code, without a traceback.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import main as main_module
from ddpm_jax import platform
from ddpm_jax.data import SOURCES, Source
from ddpm_jax.errors import UserError, explain, remedy
from ddpm_jax.runs import checkpoints, jobs, run_directory

CONFIGS = Path(__file__).parent.parent / "configs"
TOY = f"--config={CONFIGS}/toy2d.py:smoke"
DIGITS = f"--config={CONFIGS}/digits.py:smoke"
FOLDER = f"--config={CONFIGS}/folder.py:smoke --config.data.image_size=8"
AGAIN = "--workdir=run --config.train.steps=16"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a run of toy2d, and files of many kinds."""
    here = tmp_path_factory.mktemp("prepared")
    assert call(*TOY.split(), f"--workdir={here}/run", "--config.sampler.frames=0", "--config.train.sample_every=0") == 0
    (here / "file").write_text("no folder\n")
    (here / "dangling").symlink_to("nowhere/at/all")
    for name in ("empty", "corrupt", "mixed", "bomb", "texts"):
        (here / name).mkdir()
    (here / "corrupt/a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 50)
    (here / "corrupt/b.jpg").write_bytes(b"")
    (here / "texts/a.txt").write_text("")
    Image.new("L", (9, 9)).save(here / "mixed/grey.png")
    Image.new("RGB", (9, 9)).save(here / "mixed/colour.png")
    Image.new("1", (20_000, 20_000)).save(here / "bomb/large.png")
    return here


def call(*words):
    """The exit code of the command line, in this process."""
    main_module.FLAGS.unparse_flags()
    for name in ("config", "workdir", "mode", "debug"):
        main_module.FLAGS[name].unparse()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main", *words])
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # `run` sets it for good
        try:
            main_module.run()
        except SystemExit as stop:
            return stop.code
    return 0


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A current folder with a copy of all that."""
    shutil.copytree(prepared, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("DDPM_JAX_RAW", raising=False)


def edit(**changes):
    """Changes the config.json of the run: keys of the config with __ for the dot, or else its other parts."""
    content = json.loads(Path("run/config.json").read_text())
    for name, value in changes.items():
        part = content["config"] if "__" in name else content
        part[name.replace("__", ".")] = value
    Path("run/config.json").write_text(json.dumps(content))


def damage(part="state", steps=(4, 8)):
    for step in steps:
        path = max(Path(f"run/checkpoints/{step}/{part}").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
        path.write_bytes(path.read_bytes()[:-1])


def replace(path, text=None):
    """Puts a file with this text in the place of a file or folder; None: a folder."""
    shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
    Path(path).mkdir() if text is None else Path(path).write_text(text)


def of_another_code():
    """The checkpoints' notes with another format number."""
    for step in (4, 8):
        (path,) = Path(f"run/checkpoints/{step}/notes").glob("metadata")
        path.write_text(path.read_text().replace(r"\"format\": ", r"\"format\": 9"))
        stored = json.loads(path.read_text())
        stored["sha256"] = hashlib.sha256(stored["notes"].encode()).hexdigest()
        path.write_text(json.dumps(stored))
        Path(f"run/checkpoints/{step}/SHA256SUMS").unlink()


def foreign():
    """A checkpoint folder of another program."""
    replace("run/checkpoints")
    Path("run/checkpoints/8").mkdir()
    Path("run/checkpoints/8/model.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))


def half_written():
    for step in (4, 8):
        os.rename(f"run/checkpoints/{step}", f"run/checkpoints/{step}.orbax-checkpoint-tmp")


def fewer_points(patch):
    patch.setitem(SOURCES, "toy2d", lambda **_: Source({"image": np.zeros((999, 2), "f"), "label": np.zeros(999, "i")}, 2))


def raising(patch, error):
    def job(*_, **__):
        raise error

    patch.setitem(jobs.JOBS, "train", job)


# name: (what to prepare, the command, words of the message)
TABLE = {
    # data
    "no folder named": (None, FOLDER, ["No folder of images is named", "--config.data.path=FOLDER"]),
    "no such folder": (None, f"{FOLDER} --config.data.path=nowhere", ["data.path='nowhere' does not exist", "Pass a folder"]),
    "a file as folder": (None, f"{FOLDER} --config.data.path=file", ["config.data.path='file' is not a folder"]),
    "an empty folder": (None, f"{FOLDER} --config.data.path=empty", ["empty holds no images", "Pass another"]),
    "a folder of texts": (None, f"{FOLDER} --config.data.path=texts", ["found only 1 .txt", "convert the images"]),
    "corrupt images": (None, f"{FOLDER} --config.data.path=corrupt", ["None of the 2 images", "a.png", "b.jpg", "damaged"]),
    "grey and colour": (None, f"{FOLDER} --config.data.path=mixed", ["1 grey images", "colour.png", "channels=rgb or grey"]),
    "a bomb": (None, f"{FOLDER} --config.data.path=bomb", ["bomb/large.png is refused", "400000000 pixels", "Remove it"]),
    "no such split": (None, f"{DIGITS} --config.data.split=test", ["digits has one split, 'train'", "found split 'test'"]),
    "no such set": (None, f"{DIGITS} --config.data.name=mnits", ["There is no data set 'mnits'", "Did you mean mnist"]),
    "no raw files": (
        None,
        f"--config={CONFIGS}/mnist.py:smoke --config.data.data_dir=empty --config.data.raw_dir=nowhere",
        ["raw_dir='nowhere' lacks raw files of mnist", "train-images-idx3-ubyte.gz"],
    ),
    "damaged CIFAR": (
        lambda: [Path(f"empty/data_batch_{i}.bin").write_bytes(b"x" * 99) for i in range(1, 6)],
        f"--config={CONFIGS}/cifar10_raw.py:smoke --config.data.raw_dir=empty",
        ["empty/data_batch_", "holds 99 bytes", "Replace it by the official file"],
    ),
    "a batch larger than the set": (None, f"{DIGITS} --config.train.batch_size=1800", ["the data hold 1797 examples"]),
    "a batch that devices do not divide": (
        None, f"{DIGITS} --config.train.batch_size=12",
        ["12 and there are 8 devices", "take 8"],
    ),
    "mirrored points": (None, f"{TOY} --config.data.flip=true", ["config.data.flip mirrors images", "leave it false"]),
    # values that do not go together
    "steps per call": (None, f"{TOY} --config.train.steps_per_call=3", ["steps_per_call is 3", "take a divisor of 2"]),
    "a network for points on images": (
        None, f"{DIGITS} --config.network.name=mlp",
        ["network.name=mlp takes points", "[8, 8, 1]", "take unet"],
    ),
    "a network for images on points": (
        None, f"{TOY} --config.network.name=unet",
        ["U-Net takes images", "points of [2]", "name=mlp"],
    ),
    "too many levels": (
        None, f"{DIGITS} --config.network.multipliers=1,1,1,1,1,1",
        ["6 levels", "images are 8x8", "at most 4"],
    ),
    "heads": (None, f"{DIGITS} --config.network.attention=4 --config.network.heads=3", ["network.heads=3"]),
    # run directories
    "a read-only file system": (
        None, f"{TOY} --workdir=/proc/nothing/run",
        ["/proc/nothing/run cannot be written", "another --workdir"],
    ),
    "a dangling link": (None, f"{TOY} --workdir=dangling/run", ["dangling"]),
    "a name too long": (None, f"{TOY} --workdir={'a' * 300}", ["File name too long"]),
    "a file as samples": (lambda: replace("run/samples", ""), AGAIN, ["run directory run cannot be written", "File exists"]),
    "a file as checkpoints": (lambda: replace("run/checkpoints", ""), AGAIN, ["run directory run cannot be written"]),
    "a folder as metrics": (lambda: replace("run/metrics.jsonl"), AGAIN, ["metrics.jsonl cannot be read", "Is a directory"]),
    "a folder as config": (lambda: replace("run/config.json"), AGAIN, ["run/config.json cannot be read", "Is a directory"]),
    "an empty config": (
        lambda: replace("run/config.json", ""), AGAIN,
        ["run/config.json cannot be read", "Put a copy of it there"],
    ),
    "a config of another format": (lambda: edit(format=99), AGAIN, ["format 99; this code reads formats up to ", "Use the"]),
    "a key of another version": (lambda: edit(train__stepz=7), AGAIN, ["a config that this code does not take", "train.stepz"]),
    "a value of another version": (
        lambda: edit(network__name="dit"), AGAIN,
        ["does not take", "network.name takes one of", "'dit'"],
    ),
    "data of another shape": (
        lambda: edit(image_shape=[3]), AGAIN,
        ["has images of [3] and the data are now [2]", "same data back"],
    ),
    "data of other classes": (
        lambda: edit(num_classes=5), AGAIN,
        ["has 5 classes and the data now 2", "same data back"],
    ),
    # labels
    "labels of a set without": (
        lambda: shutil.copy("mixed/grey.png", "texts/a.png"),
        f"{FOLDER.replace('smoke', 'cond,smoke')} --config.data.path=texts",
        ["network is to be shown labels", "data set folder has one class", "leave out the variant cond"],
    ),
    "a label out of range": (
        None, f"{TOY.replace('smoke', 'cond,smoke')} --config.sampler.labels=0,2",
        ["sampler.labels has 2", "0 to 1"],
    ),
    "a label of a run without": (
        None, "--mode=sample --workdir=run --config.sampler.labels=0",
        ["sampler.labels is (0,)", "not conditional", "variant cond"],
    ),
    "guidance of a run without labels": (
        None, "--mode=sample --workdir=run --config.guidance.scale=2",
        ["guidance.scale is 2.0", "it is not conditional", "guidance.weak"],
    ),
    "guidance without a null label": (
        None, f"{TOY.replace('smoke', 'cond,smoke')} --config.cond.dropout=0 --config.guidance.scale=2",
        ["guidance.scale is 2.0", "the null label was not trained, cond.dropout being 0"],
    ),
    "guidance that never acts": (
        None, f"{TOY} --config.guidance.interval_low=3 --config.guidance.interval_high=2",
        ["interval_low is 3.0 and interval_high 2.0", "raise the latter"],
    ),
    "no weaker run": (
        None, "--mode=sample --workdir=run --config.guidance.weak=nowhere --config.guidance.scale=2",
        ["There is no run in nowhere"],
    ),
    "a weaker run of another process": (
        lambda: [shutil.copytree("run", "weak"), edit(process__beta_end=0.03)],
        "--mode=sample --workdir=run --config.guidance.weak=weak --config.guidance.scale=2",
        ["The run in weak, config.guidance.weak", "another process (linear)", "give one of the same"],
    ),
    "a weaker run of other labels": (
        lambda: shutil.copytree("run", "weak"),
        f"{TOY.replace('smoke', 'cond,smoke')} --config.guidance.weak=weak --config.guidance.scale=2",
        ["The run in weak", "knows no classes, and the run that it is to guide 2"],
    ),
    "a classifier that is none": (
        lambda: shutil.copytree("run", "other"), "--mode=sample --workdir=run --config.guidance.classifier=other",
        ["The run in other, config.guidance.classifier, has config.task=diffusion", "give one of classifier"],
    ),
    "two guides": (
        None, "--mode=sample --workdir=run --config.guidance.classifier=other --config.guidance.weak=other",
        ["guidance.weak and config.guidance.classifier are both given"],
    ),
    "a classifier of points": (None, f"{TOY} --config.task=classifier", ["half of a U-Net", "must be unet, found mlp"]),
    "labels shown to a classifier": (
        None, f"{DIGITS.replace('smoke', 'cond,smoke')} --config.task=classifier",
        ["labels that a classifier (config.task) is to find", "leave it out"],
    ),
    # checkpoints
    "of another network": (lambda: edit(network__channels=16), AGAIN, ["network.channels: 8 -> 16", "give another --workdir"]),
    "of other levels": (lambda: edit(network__blocks=2), AGAIN, ["network.blocks: 1 -> 2", "set these back there"]),
    "all damaged": (damage, AGAIN, ["None of the checkpoints in", "(steps 4, 8) can be read", "another --workdir"]),
    "all notes damaged": (lambda: damage("notes"), "--mode=sample --workdir=run", ["None of the checkpoints in"]),
    "of another format": (of_another_code, AGAIN, ["has format 92; this code reads formats up to 2"]),
    "of another program": (foreign, AGAIN, ["None of the checkpoints in", "(steps 8)"]),
    "half-written": (half_written, "--mode=sample --workdir=run", ["run has no checkpoint yet", "Train it"]),
    # samples
    "nowhere to write samples": (
        lambda: replace("run/samples", ""), "--mode=sample --workdir=run",
        ["File exists", "--debug"],
    ),
}  # fmt: skip
# the same, prepared with pytest's monkeypatch
PATCHED = {
    "data of another size": (fewer_points, AGAIN, ["trained on 50000 examples and the data now hold 999", "same data back"]),
    "memory": (lambda patch: raising(patch, MemoryError()), TOY, ["memory does not suffice", "lower config.train.batch_size"]),
    "memory of the device": (
        lambda patch: raising(patch, jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")),
        TOY,
        ["does not suffice (JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes)", "sampler.batch_size"],
    ),
    "a disk that fails": (
        lambda patch: raising(patch, OSError(5, "Input/output error", "/data/x")), TOY,
        ["Input/output error: '/data/x'", "--debug"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*TABLE, *PATCHED])
def test_it_is_said_what_was_wrong(name, here, monkeypatch, capsys):  # noqa: ARG001 - `here` is the current folder
    prepare, line, words = (TABLE | PATCHED)[name]
    if prepare is not None:
        prepare(monkeypatch) if name in PATCHED else prepare()
    before = {path: path.is_file() and path.read_bytes() for path in Path("run/checkpoints").rglob("*")}
    workdir = [] if "--workdir" in line else ["--workdir=new"]
    code = call(*line.split(), *workdir)
    out, err = capsys.readouterr()
    (last,) = [text for text in err.splitlines() if text.startswith("error: ")]
    assert code == 2 and err.endswith(last + "\n") and "Traceback" not in out + err, err
    for word in words:
        assert word in last, last
    assert last[-1] in ".)?"
    after = {path: path.is_file() and path.read_bytes() for path in Path("run/checkpoints").rglob("*")}
    assert before.items() <= after.items()  # nothing is lost


def test_debug_shows_the_traceback(here, capsys):  # noqa: ARG001
    assert call(*FOLDER.split(), "--config.data.path=nowhere", "--workdir=new", "--debug") == 2
    assert capsys.readouterr().err.startswith("Traceback")
    assert not Path("new").exists()


def test_another_process_in_the_run_directory(here, capsys):  # noqa: ARG001
    """Training stops with the name of the process; sampling may go on beside it."""
    with run_directory.held(Path("run")):
        assert call(*AGAIN.split()) == 2
        assert f"run is in use: process {os.getpid()} on " in capsys.readouterr().err
        assert call("--mode=sample", "--workdir=run", "--config.sampler.frames=0") == 0


def test_a_cache_that_cannot_be_written(here, monkeypatch, capsys):  # noqa: ARG001
    """Told, and the programs are compiled anew."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    for folder, told in (("file/cache", True), ("/proc/cache", True), ("new/cache", False), ("gs://bucket/cache", False)):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        platform.check_cache()
        err = capsys.readouterr().err
        assert ("cannot be written" in err and "JAX_COMPILATION_CACHE_DIR" in err) == told
        assert (os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "false") == told
        monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")


def test_a_device_that_jax_does_not_find(monkeypatch):
    """It raises RuntimeError, or fails an assertion, in the module that looks for devices."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(AssertionError) as caught:
        exec(compile("assert False", "jax/_src/xla_bridge.py", "exec"))
    assert "Unset JAX_PLATFORMS, which is 'cuda'" in str(explain(caught.value))


def test_a_bug_keeps_its_traceback():
    assert explain(ZeroDivisionError()) is None and explain(KeyError("x")) is None
    error = UserError("No.")
    assert explain(error) is error


def test_room_is_asked_for_where_it_lacks():
    """Whoever could not write; tensorstore tells it by words alone. Other failures are told by their own words."""
    full = [OSError(number, os.strerror(number), "run") for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    full += [ValueError(f'RESOURCE: Error writing "x" [OS error 28: {os.strerror(errno.ENOSPC)}]')]
    others = [OSError(errno.EACCES, os.strerror(errno.EACCES), "run"), TimeoutError("clock"), RuntimeError("Unable to cast")]
    assert [remedy(error) for error in (*full, *others)] == ["Make room"] * 4 + ["Mend that"] * 3
    assert "Make room, then start" in str(explain(full[0])) and "Mend that, then start" in str(explain(others[0]))


def test_a_path_that_is_no_utf8():
    """As a name with an umlaut under LC_ALL=C, where Python was told PYTHONUTF8=0: said before anything is trained."""
    with pytest.raises(UserError, match="as UTF-8. Set LC_ALL=C.UTF-8"):
        checkpoints.open_manager(Path(os.fsdecode(b"gr\xff\xdfe")))
