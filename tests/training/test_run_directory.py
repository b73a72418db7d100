import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_jax import config as configs
from ddpm_jax.errors import UserError
from ddpm_jax.training import run_directory


def test_round_trip(tmp_path):
    config = configs.base()
    config.network.multipliers = (1, 3)
    config.optim.learning_rate = 1.1e-4
    run_directory.write(tmp_path / "run", config, (28, 28, 1), 10)
    read, *rest = run_directory.read(tmp_path / "run")
    assert configs.flatten(read) == configs.flatten(config) and rest == [(28, 28, 1), 10]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.json", "checkpoints", "samples"}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["versions"]["jax"]


def test_an_older_config_gets_todays_defaults(tmp_path):
    run_directory.write(tmp_path, configs.base(), (8, 8, 1))
    content = json.loads((tmp_path / "config.json").read_text())
    del content["config"]["train.keep_every"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert run_directory.read(tmp_path)[0].train.keep_every == configs.KEYS["train.keep_every"].default


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
    text = (tmp_path / "config.json").read_text().replace('"format": 3', '"format": 99')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="format 99.*formats up to 3"):
        run_directory.read(tmp_path)


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


STRANGE = {
    "image_shape": [
        ("abc", "cannot be read"), ([8, 8, -1], "cannot be read"), ([8, 8, 1.0], "cannot be read"), ([], "cannot be read"),
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
from ddpm_jax.training import run_directory
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
