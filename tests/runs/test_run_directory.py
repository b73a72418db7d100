import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.config import variants
from ddpm_jax.construct import construct
from ddpm_jax.data import SOURCES, Source
from ddpm_jax.errors import UserError
from ddpm_jax.runs import jobs, resumable, run_directory
from ddpm_jax.tasks import build
from ddpm_jax.training import metrics as metrics_of


def test_round_trip(tmp_path):
    config = configs.base()
    config.network.multipliers = (1, 3)
    config.optim.learning_rate = 1.1e-4
    run_directory.write(tmp_path / "run", config, (28, 28, 1), 10)
    read, *rest = run_directory.read(tmp_path / "run")
    acting = {"process.steps": 1000, "process.beta_start": 1e-4, "process.beta_end": 0.02}
    acting |= {"process.rescale": False, "process.zero_terminal_snr": False}  # written down: tomorrow's defaults may be others
    assert configs.flatten(read) == configs.flatten(config) | acting and rest == [(28, 28, 1), 10, {}]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "checkpoints", "samples"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["versions"]["jax"]


def test_an_older_config_gets_todays_defaults(tmp_path):
    run_directory.write(tmp_path, configs.base(), (8, 8, 1))
    content = json.loads((tmp_path / "config.json").read_text())
    del content["config"]["train.keep_every"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert run_directory.read(tmp_path)[0].train.keep_every == configs.KEYS["train.keep_every"].default


def test_format_3_had_0_for_the_constructors_own_default(tmp_path):
    """And numbers for what is now left to it, which hold."""
    run_directory.write(tmp_path, configs.base(), (8, 8, 1))
    content = json.loads((tmp_path / "config.json").read_text())
    content["config"] |= {"process.beta_start": 0.0, "times.t_min": 0.0, "sampler.t_min": 0.0, "sampler.eta": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(content | {"format": 3}))
    config = run_directory.read(tmp_path)[0]
    assert config.process.beta_start == config.times.t_min == config.sampler.t_min == "auto" and config.sampler.eta == 0.0
    assert configs.differences(config, configs.base()) == ["addresses: 'shared' -> 'by_purpose'"]  # also of format 3


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "There is no run in"),
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
        ("[]", "cannot be read"),
        ("\x00" * 100, "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"a":' * 100_000, "cannot be read"),
    ],
)
def test_what_is_no_run(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        run_directory.read(tmp_path)


def test_another_format_is_refused(tmp_path):
    run_directory.write(tmp_path, configs.base(), (8, 8, 1))
    text = (tmp_path / "config.json").read_text().replace(f'"format": {run_directory.FORMAT}', '"format": 99')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"format 99.*formats up to {run_directory.FORMAT}"):
        run_directory.read(tmp_path)


IDENTITY = {"set": "folder", "files": {"cat": "2 files, digest 1", "dog": "1 files, digest 2"}, "classes": ["cat", "dog"]}


def source(identity, classes=2):
    return Source({"image": np.zeros((3, 8, 8, 1), np.uint8), "label": np.zeros(3, np.int32)}, classes, identity)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"classes": ["dog", "kat"]}, "classes 0: 'cat' -> 'dog'; classes 1: 'dog' -> 'kat' (there -> here)"),
        ({"classes": ["cat", "dog", "eel"]}, "classes 2: none -> 'eel'"),
        ({"files": IDENTITY["files"] | {"dog": "1 files, digest 3"}}, "files dog: '1 files, digest 2' -> '1 files, digest 3'"),
        ({"set": "mnist/3.0.1"}, "set: 'folder' -> 'mnist/3.0.1'"),
        ({"split": "train\33"}, "split: none -> 'train\\x1b'"),
        ({"classes": [str(i) for i in range(99)]}, "and 94 more classes"),
    ],
)
def test_other_data_are_refused(tmp_path, change, told):
    """A run continues with the data that it was trained on; it is evaluated on those of the same set and classes."""
    run_directory.write(tmp_path, configs.base(), (8, 8, 1), 2, IDENTITY)
    run_directory.check_data(tmp_path, source(IDENTITY))
    with pytest.raises(UserError) as error:
        run_directory.check_data(tmp_path, source(IDENTITY | change))
    assert told in str(error.value) and "Bring the same data back" in str(error.value)
    if not {"set", "classes"} & {*change}:
        run_directory.check_data(tmp_path, source(IDENTITY | change), whole=False)
    else:
        with pytest.raises(UserError, match="there -> here"):
            run_directory.check_data(tmp_path, source(IDENTITY | change), whole=False)


def test_old_runs_keep_the_labels_that_they_know(tmp_path):
    """Class folders had another order. Where that matters the run is refused."""
    config = configs.base()
    config.data.name = "folder"
    natural, both = ({"set": "folder", "classes": names} for names in (["1", "2", "10"], ["00_1", "01_10", "02_2"]))
    run_directory.write(tmp_path, config, (8, 8, 1), 3)  # as a run of before, that knows nothing of its data
    run_directory.check_data(tmp_path, source(natural, 3))
    config.cond.labels = True
    run_directory.write(tmp_path, config, (8, 8, 1), 3)
    run_directory.check_data(tmp_path, source(both, 3))
    with pytest.raises(UserError, match="in the order 1, 10, 2; now it is 1, 2, 10.*as 00_1, 01_10"):
        run_directory.check_data(tmp_path, source(natural, 3))
    run_directory.write(tmp_path, config, (8, 8, 1), 3, natural)
    run_directory.check_data(tmp_path, source(natural, 3))


def test_agreement(tmp_path):
    config = configs.base()
    run_directory.write(tmp_path, config, (8, 8, 1))
    config.train.steps += 1
    config.sampler.steps = 10
    run_directory.check_agreement(tmp_path, config)
    config.optim.learning_rate = 0.5
    config.seed = 3
    with pytest.raises(UserError, match=r"seed: 0 -> 3; optim.learning_rate: 0.0002 -> 0.5.*--workdir"):
        run_directory.check_agreement(tmp_path, config)


def test_checkpoints_are_bound_to_every_fixed_key():
    """Each that acts, and the shape and the classes; what may change is free. Notes of before say nothing, and are taken."""
    config = variants.apply(configs.base(), "smoke")
    data = {"set": "folder", "files": ["a", "b"]}
    identity = json.loads(json.dumps(run_directory.identity(config, (8, 8, 1), 10, data)))
    free = {key for key in configs.KEYS if key.startswith(configs.CHANGEABLE)}
    acting = {key for key in configs.KEYS if configs.applies(key, config)}
    assert set(identity["config"]) == acting - free and len(free) > 20 and len(acting - free) > 40

    def check(identity, shape=(8, 8, 1), classes=10, data=data):
        run_directory.check_checkpoint(Path("runs/x"), config, shape, classes, data, 7, {"identity": identity})

    check(identity)
    check(identity, classes=0, data={})  # an old config.json
    run_directory.check_checkpoint(Path("runs/x"), config, (8, 8, 1), 10, data, 7, {})
    with pytest.raises(UserError, match="than the run has now: data.files: other than there .in"):
        check(identity, data=data | {"files": ["a", "c"], "later": 3})
    for key, value in identity["config"].items():
        choices = configs.KEYS[key].accepts or ()
        other = next((choice for choice in choices if isinstance(choice, str) and choice != value), "other")
        words = rf"step 7 in runs/x .*than the run has now: .*{key}: '{re.escape(other)}' -> .*now.*config.json.*--workdir"
        with pytest.raises(UserError, match=words):
            check(identity | {"config": identity["config"] | {key: other}})
        if configs.is_default(key, config):  # a key that a later version brought
            check(identity | {"config": {other: identity["config"][other] for other in identity["config"] if other != key}})
    with pytest.raises(UserError, match=r"image_shape: \[8, 8, 1\] -> \[8, 16, 1\]; num_classes: 10 -> 3; random: 'rbg' -> "):
        check(identity | {"random": "rbg"}, (8, 16, 1), 3)
    for strange in (None, [], {"format": 3}, identity | {"config": None}, identity | {"num_classes": []}):
        with pytest.raises(UserError, match="notes of the checkpoint of step 7 in runs/x do not say"):
            check(strange)


def test_a_run_directory_whose_config_was_changed_or_is_gone(point_config, tmp_path):
    """Neither continued, nor loaded, nor begun anew on top of what is there; put back, it goes on."""
    point_config.train.update(steps=1, checkpoint_every=1)
    point_config.data.update(name="toy2d", num_examples=48)
    point_config.sampler.frames = 0
    source = construct(SOURCES, point_config.data)
    task = build(point_config, source.image_shape, source.num_classes)
    run_directory.write(tmp_path, point_config, source.image_shape, source.num_classes)
    resumable.train(point_config, tmp_path, task, source, jax.devices()[:1])
    path = tmp_path / "config.json"
    whole = path.read_text()
    content = json.loads(whole)
    content["config"]["optim.learning_rate"] = 0.5
    path.write_text(json.dumps(content))
    changed = run_directory.read(tmp_path)[0]
    changed.train.steps = 2
    words = "optim.learning_rate: 0.0002 -> 0.5 .*config.json"
    for call in (lambda: jobs.train(changed, tmp_path), lambda: ddpm_jax.load(tmp_path)):
        with pytest.raises(UserError, match=words):
            call()
    path.unlink()
    point_config.seed = 1
    with pytest.raises(UserError, match=r"checkpoints .of steps 1., but no config.json.*Put that run's config.json back"):
        jobs.train(point_config, tmp_path)
    assert not path.exists()
    path.write_text(whole)
    assert ddpm_jax.load(tmp_path).state.step == 1


@pytest.mark.parametrize("history", [3, [3], [{"step": "1"}], [{"step": 1, "changed": {"seed": 3}}]])
def test_notes_with_a_history_that_is_none(history, point_config, tmp_path, monkeypatch):
    """Found before the run goes on from them."""
    notes = {"pending": {}, "skipped": 0, "skipped_in_a_row": 0, "num_examples": 48, "history": history}
    monkeypatch.setattr(resumable.checkpoints, "restore_latest", lambda *_, **__: (1, None, notes))
    point_config.data.update(name="toy2d", num_examples=48)
    with pytest.raises(UserError, match="notes of the checkpoint of step 1 in .* are not those of a training"):
        jobs.train(point_config, tmp_path)


STRANGE = {
    "image_shape": [
        ("abc", "cannot be read"), ([8, 8, -1], "cannot be read"), ([8, 8, 1.0], "cannot be read"), ([], "cannot be read"),
        ([8, 8], "cannot be read"),
        ([2**40, 8, 1], "cannot be read"), (None, "cannot be read"), ([True, 8, 1], "cannot be read"),
    ],
    "config": [
        ({"train": 5}, "no config key 'train'"), ({"train.steps.x": 5}, "no config key 'train.steps.x'"), (3, "cannot be read"),
        ({"__class__": "os.system"}, "no config key '__class__'"), ({"train.steps": {"a": 1}}, "no config key 'train.steps.a'"),
        ({"train.steps": [10**6]}, "train.steps takes an int"), ({"train.steps": 10**400}, "train.steps takes an int"),
        ({"data.name": "../../etc/passwd"}, "data.name takes"), ({"sampler.name": "__import__('os')"}, "sampler.name takes"),
        ({"seed": "$(touch x)"}, "seed takes an int"), ({"network.multipliers": [[1]]}, "network.multipliers takes a tuple"),
        ({"optim.learning_rate": float("nan")}, "learning_rate takes a float"), ([["a", 1]], "cannot be read"),
    ],
    "num_classes": [("3", "cannot be read"), (-1, "cannot be read"), (None, "cannot be read"), (True, "cannot be read")],
    "data": [
        (None, "cannot be read"), ([], "cannot be read"), ({"classes": "cat"}, "cannot be read"),
        ({"classes": [1]}, "cannot be read"), ({"classes": ["cat"]}, "1 names for 0 classes"),
    ],
    "format": [("1", "has format"), (None, "has format"), ({"a": []}, "has format")],
}  # fmt: skip


@pytest.mark.parametrize("part, value, words", [(part, *row) for part, rows in STRANGE.items() for row in rows])
def test_a_strangers_config_is_data(tmp_path, part, value, words):
    run_directory.write(tmp_path, configs.base(), (8, 8, 1))
    content = json.loads((tmp_path / "config.json").read_text())
    content[part] = content[part] | value if isinstance(value, dict) and part == "config" else value
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        run_directory.read(tmp_path)


@pytest.mark.parametrize("name", ["lock", "samples", "samples/step_8.json.tmp", "checkpoints/8"])
def test_links_lead_nowhere(name, tmp_path):
    """A stranger's could have a file overwritten that is none of the run's."""
    run_directory.write(tmp_path / "run", configs.base(), (8, 8, 1))
    path, precious = tmp_path / "run" / name, tmp_path / "precious"
    precious.write_text("kept")
    if path.is_dir():
        path.rmdir()
    path.symlink_to(precious)
    with pytest.raises(UserError, match=f"{name} is a link, and a run directory must hold none"):
        run_directory.read(tmp_path / "run")
    assert precious.read_text() == "kept"


def test_guides_are_of_the_command_alone(tmp_path):
    """A run directory that names other directories does not lead there."""
    config = configs.base()
    config.guidance.update(classifier="/somewhere/else", scale=2.0)
    config.sampler.labels, config.train.steps = (3,), 7
    run_directory.write(tmp_path, config, (8, 8, 1))
    read = run_directory.read(tmp_path)[0]
    assert read.guidance == configs.base().guidance and read.sampler.labels == () and read.train.steps == 7
    config.guidance.classifier, config.cond.labels = "", True
    run_directory.write(tmp_path, config, (8, 8, 1))
    assert run_directory.read(tmp_path)[0].guidance.scale == 2.0


def test_one_process_at_a_time(tmp_path):
    """The second is told who the first is; a lock ends with its process, even by SIGKILL, and its file may stay."""
    workdir = tmp_path / "run"
    holder = f"in use: process {os.getpid()} on {socket.gethostname()}, since 20"
    with run_directory.held(workdir), pytest.raises(UserError, match=holder), run_directory.held(workdir):
        pass
    program = f"""
import pathlib, time
from ddpm_jax.runs import run_directory
with run_directory.held(pathlib.Path({str(workdir)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    holder = f"in use: process {process.pid} on .* trains there. Wait for it or stop it"
    with pytest.raises(UserError, match=holder), run_directory.held(workdir):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert f"process {process.pid}" in (workdir / "lock").read_text()
    with run_directory.held(workdir):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    """As some network file systems are: said, and the run goes on."""
    import fcntl

    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_directory.held(tmp_path):
        assert "no locks on this file system ([Errno 37] No locks available): let no other process" in capsys.readouterr().out


ODD = (None, True, -1, 10**400, float("inf"), "\ud800", [], [[1]], ["x"], {}, {"a": 1})


def test_whatever_a_run_directory_holds_is_an_error_or_is_taken(tmp_path):
    """Each part of config.json, and of what a checkpoint's notes say, replaced by what has no business there. No traceback."""
    config = variants.apply(configs.base(), "smoke")
    run_directory.write(tmp_path, config, (8, 8, 1), 10)
    content = json.loads((tmp_path / "config.json").read_text())
    identity = json.loads(json.dumps(run_directory.identity(config, (8, 8, 1), 10, {"set": "x"})))
    notes = {"pending": {"loss": [0.5], "level_loss": [[1.0, 0.0]]}, "skipped": 0, "skipped_in_a_row": 0}
    refused = 0

    def attempt(function, *args):
        nonlocal refused
        try:
            function(*args)
        except UserError:
            refused += 1

    def continued(notes):
        with pytest.raises((KeyError, TypeError, ValueError)):  # which the loop explains
            metrics_of.restored(notes)

    for odd in ODD:
        for parts in [odd, *(content | {name: odd} for name in content)]:
            (tmp_path / "config.json").write_text(json.dumps(parts))
            attempt(run_directory.read, tmp_path)
            attempt(run_directory.read_history, tmp_path)
        for parts in [odd, *(identity | {name: odd} for name in identity)]:
            attempt(run_directory.check_checkpoint, tmp_path, config, (8, 8, 1), 10, {"set": "x"}, 4, {"identity": parts})
        for name in notes:
            if (name, odd) not in [("pending", {})]:
                continued(notes | {name: odd})
            if odd != []:
                continued(notes | {"pending": {"loss": odd}})
    assert metrics_of.restored(notes)[0] == notes["pending"] and refused > 120


def test_fixed_variances_by_their_names_of_before():
    """small and large, in a config and in the facts of samples, are fixed_small and fixed_large; the user is told so."""
    settings = {"sampler.variance": "large", "loss.variance": "learned_range", "eval.variance": "small", "data.name": "small"}
    found = run_directory.fixed_variances(settings)
    assert found == settings | {"sampler.variance": "fixed_large", "eval.variance": "fixed_small"}
    assert run_directory.fixed_variances({"variance": "small", "eta": 0.5}) == {"variance": "fixed_small", "eta": 0.5}
    with pytest.raises(UserError, match="What others call so is here fixed_large"):
        configs.check_value("sampler.variance", "large")
