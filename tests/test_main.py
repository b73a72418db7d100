"""The program as a user starts it: in a process of its own, from a folder of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax import config as configs
from ddpm_jax import main as main_module
from ddpm_jax import platform
from ddpm_jax.errors import Diverged, UserError
from ddpm_jax.runs import jobs

ROOT = Path(__file__).parent.parent
SMOKE = f"--config={ROOT / 'configs' / 'digits.py'}:smoke"
TIMEOUT = 300  # seconds, for a machine that does much else


def run(folder, *words):
    """(exit code, standard output, standard error)."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ddpm_jax.main", *words]
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT
    )
    return done.returncode, done.stdout, done.stderr


def metrics(workdir):
    """The logged lines without the wall clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "per_second" not in key} for line in lines]


def samples(workdir, pattern):
    """The files of one set of samples: (array of the .npz, facts of the .json)."""
    (npz,) = (workdir / "samples").glob(f"{pattern}.npz")
    (array,) = np.load(npz).values()
    assert npz.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    return array, json.loads(npz.with_suffix(".json").read_text())


@pytest.mark.thorough
def test_the_smoke_run(tmp_path):
    """The whole job by the README's command; started again, it is complete and changes nothing; then sampled in another way."""
    code, out, err = run(tmp_path, SMOKE)
    assert code == 0, err
    for words in ("parameters", "writing to runs/digits-smoke", "compiling the training step...", "step 8/8", "sampling 4"):
        assert words in out
    workdir = tmp_path / "runs" / "digits-smoke"
    saved = json.loads((workdir / "config.json").read_text())
    assert set(saved["config"]) == set(configs.KEYS) - set(configs.OF_THE_COMMAND)
    assert saved["image_shape"] == [8, 8, 1] and "jax" in saved["versions"]
    assert [line["step"] for line in metrics(workdir)] == [2, 4, 6, 8]
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "8"}
    assert (workdir / "samples" / "training_00000004.png").stat().st_size
    drawn, facts = samples(workdir, "step_00000008_*")
    assert drawn.shape == (4, 8, 8, 1) and drawn.dtype == np.uint8
    assert facts["seed"] == 0 and facts["checkpoint_step"] == 8 and facts["network_evaluations"] == 5 and facts["seconds"] > 0
    assert facts["sampler"]["name"] == "ancestral"

    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "config.json"}
    code, out, err = run(tmp_path, SMOKE)
    assert code == 0, err
    assert "The run is complete: 8 steps" in out and "compiling" not in out
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file() and path.name != "config.json"}

    given = ["name=ddim", "steps=7", "eta=0.5", "num_samples=2", "seed=3"]
    code, out, err = run(tmp_path, "--mode=sample", f"--workdir={workdir}", *(f"--config.sampler.{word}" for word in given))
    assert code == 0 and err == ""
    drawn, facts = samples(workdir, "*ddim*")
    assert drawn.shape == (2, 8, 8, 1) and facts["seed"] == 3 and facts["checkpoint_step"] == 8
    assert facts["network_evaluations"] == 7 and (facts["sampler"]["name"], facts["sampler"]["eta"]) == ("ddim", 0.5)
    assert json.loads((workdir / "config.json").read_text())["config"]["sampler.name"] == "ancestral"


@pytest.mark.thorough
def test_a_mistake_is_one_paragraph_and_exit_code_2(tmp_path):
    """--debug brings the traceback."""
    mistake = "--config.optim.learning_rat=1"
    error = "error: There is no config key 'optim.learning_rat'. Did you mean optim.learning_rate?\n"
    assert run(tmp_path, SMOKE, mistake) == (2, "", error)
    code, out, err = run(tmp_path, SMOKE, mistake, "--debug")
    assert code == 2 and out == "" and err.startswith("Traceback") and err.endswith(error)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------- the same, in this process


@pytest.fixture
def call(monkeypatch, capsys):
    """Calls `run` with these words and a job in place of training. Returns (exit code, output, errors)."""
    monkeypatch.setattr(main_module.platform, "prepare", lambda: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # `run` sets it for good

    def call(*words, job=lambda *_, **__: print("trained")):
        main_module.FLAGS.unparse_flags()
        for name in ("config", "workdir", "mode", "debug"):
            main_module.FLAGS[name].unparse()
        monkeypatch.setattr(sys, "argv", ["main", *words])
        monkeypatch.setitem(jobs.JOBS, "train", job)
        try:
            main_module.run()
            code = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def raising(error):
    def job(*_, **__):
        raise error

    return job


def test_exit_codes(call):
    assert call(SMOKE) == (0, "trained\n", "")
    assert call(SMOKE, job=raising(UserError("No\n  good."))) == (2, "", "error: No good.\n")
    assert call(SMOKE, job=raising(Diverged("Too far."))) == (3, "", "error: Too far.\n")
    assert call(SMOKE, job=raising(OSError(5, "Input/output error")))[0] == 2
    code, out, err = call(SMOKE, job=raising(ZeroDivisionError("oh")))  # a bug shows its traceback
    assert (code, out) == (1, "") and err.startswith("Traceback") and err.endswith("ZeroDivisionError: oh\n")


@pytest.mark.parametrize("mistake", ["--config.optim.zzz=1", "--zzz=1", "--mode=foo", "word", "--config.train.steps=x"])
def test_a_mistake_comes_before_the_job(call, mistake):
    def job(*_, **__):
        raise AssertionError("the job was started")

    code, out, err = call(SMOKE, mistake, job=job)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
    for debug in ("--debug", "--debug=true"):
        with_debug = call(debug, SMOKE, mistake, job=job)[2]
        assert with_debug.startswith("Traceback") and with_debug.endswith(err)
    assert call("--nodebug", SMOKE, mistake, job=job)[2] == err


def test_debug_counts_wherever_it_stands(call):
    assert call("--mode=foo", "--debug")[2].startswith("Traceback")


def test_help(call):
    code, out, err = call("--help")
    assert code == 0 and err == "" and "--workdir" in out and "ddim" in out and not out.endswith("trained\n")
    code, out, err = call("--help", SMOKE, "--config.train.steps=123")
    assert code == 0 and err == "" and "--config.train.steps=123" in out and "one of ancestral, ddim" in out


def prepared(monkeypatch, environment, version="0.10.2", plugins=()):
    monkeypatch.setattr(platform.os, "environ", dict(environment))
    monkeypatch.setattr(platform.importlib.metadata, "version", lambda _: version)
    monkeypatch.setattr(platform.importlib.util, "find_spec", lambda name: name in plugins or None)
    platform.prepare()
    return platform.os.environ


def test_what_is_set_before_jax_starts(monkeypatch):
    """The compilation cache always; the flag for CPUs only where it was tried; nothing that the user has set.

    On CPUs XLA's "Very slow compile?", which it prints as an error, stays out of the progress line.
    """
    env = prepared(monkeypatch, {"XDG_CACHE_HOME": "/cache"})
    assert env["JAX_COMPILATION_CACHE_DIR"] == "/cache/ddpm_jax/compiled" and env["XLA_FLAGS"] == platform.CONVOLUTION_FLAG
    assert "XLA_FLAGS" not in prepared(monkeypatch, {"XDG_CACHE_HOME": "/cache"}, version="0.99")
    assert "XLA_FLAGS" not in prepared(monkeypatch, {"XDG_CACHE_HOME": "/cache"}, plugins=("jax_cuda12_plugin",))
    mine = {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": "/mine", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "9"}
    mine |= {"HOME": "/home", "TF_CPP_MIN_LOG_LEVEL": "0"}
    assert env["TF_CPP_MIN_LOG_LEVEL"] == "3"
    assert "TF_CPP_MIN_LOG_LEVEL" not in prepared(monkeypatch, {"XDG_CACHE_HOME": "/cache"}, plugins=("libtpu",))
    assert prepared(monkeypatch, mine) == mine
    numbers = prepared(monkeypatch, mine | {"JAX_THREEFRY_PARTITIONABLE": "0"})  # a run's random numbers are its own
    assert numbers == mine | {"JAX_THREEFRY_PARTITIONABLE": "true"}
