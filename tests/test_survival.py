"""Whatever happens to a run, its result is the one it would have had: parameters, averages, optimizer state, metrics, samples.

The processes are forked from a server that has imported everything and touched no device, so that each starts in a second.
"""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import chex
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.runs import logs

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds, for a machine that does much else
LOADED = ["ddpm_jax.main", "ddpm_jax.command", "ddpm_jax.runs.jobs", "matplotlib.figure", "PIL.Image", "sklearn.datasets"]
PROGRAM = """
import os, resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs, as these tests may be, ignore
os.dup2(os.open({out!r}, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 1)
os.dup2(1, 2)
{before}
sys.argv = ["main", *{words!r}]
from ddpm_jax import main
main.run()
"""
FULL_FROM_30 = """
import threading, time
def limit():
    while not os.path.exists("full/checkpoints/30"):
        time.sleep(0.001)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
threading.Thread(target=limit, daemon=True).start()
"""


def words(config, **keys):
    return [f"--config={ROOT}/configs/{config}", *(f"--config.{key.replace('__', '.')}={value}" for key, value in keys.items())]


TOY = words("toy2d.py:smoke", network__channels=64, train__steps=300, train__checkpoint_every=6, train__log_every=4,
            train__sample_every=0, train__steps_per_call=2, sampler__frames=0)  # fmt: skip
DIGITS = words("digits.py", network__dropout=0.1, train__steps=300, train__batch_size=16, train__checkpoint_every=3,
               train__log_every=4, train__sample_every=20, sampler__frames=0, sampler__num_samples=4)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """What starts the processes: with one device, and a compilation cache of their own, since a kill may cut an entry short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(LOADED)
        server.Process(target=int).start()  # the server reads the environment when it starts
        return server


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """The undisturbed run of toy2d."""
    folder = tmp_path_factory.mktemp("whole")
    code, out = finish(launch(server, folder, *TOY, f"--workdir={folder}/run"), folder)
    assert code == 0, out
    return folder / "run"


@pytest.fixture
def start(server, tmp_path, monkeypatch):
    """start(*words, before="") starts the command line in the folder of the test, which is the current one."""
    monkeypatch.chdir(tmp_path)
    started = []

    def start(*words, before=""):
        started.append(launch(server, tmp_path, *words, before=before))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def launch(server, folder, *words, before=""):
    """A process of the command line, its output in folder/out."""
    process = server.Process(target=exec, args=(PROGRAM.format(out=f"{folder}/out", words=words, before=before), {}))
    process.start()
    return process


def finish(process, folder="."):
    """(exit code, output)."""
    process.join(TIMEOUT)
    return process.exitcode, Path(folder, "out").read_text()


def wait(process, condition):
    give_up = time.monotonic() + TIMEOUT
    while not condition():
        assert process.is_alive() and time.monotonic() < give_up, Path("out").read_text()
        time.sleep(0.001)


def wait_for_words(process, text):
    wait(process, lambda: Path("out").exists() and text in Path("out").read_text())


def saved(workdir):
    return {int(path.name) for path in Path(workdir, "checkpoints").glob("*") if path.name.isdigit()}


def unfinished(workdir):
    return set(Path(workdir, "checkpoints").glob("*tmp*"))


def assert_same_end(a, b):
    """Bit for bit, but for the wall clock."""
    chex.assert_trees_all_equal(ddpm_jax.load(a).state, ddpm_jax.load(b).state)
    lines = [logs.read(Path(run, "metrics.jsonl")) for run in (a, b)]
    first, second = ([{k: v for k, v in line.items() if "per_second" not in k} for line in part] for part in lines)
    assert first == second and first
    drawn = [dict(np.load(next(Path(run, "samples").glob("step_*.npz")))) for run in (a, b)]
    chex.assert_trees_all_equal(*drawn)
    grids = [{path.name: path.read_bytes() for path in Path(run, "samples").glob("training_*.png")} for run in (a, b)]
    assert grids[0] == grids[1]


def kill_again_and_again(start, words, whole, kills, longest, seed=0):
    """SIGKILL at random moments: half of them while the run starts, the others in mid-save and between two saves, by turns."""
    chance, left = random.Random(seed), 0
    for kill in range(kills):
        old = unfinished("killed") | saved("killed")
        process = start(*words, "--workdir=killed")
        if kill % 2 == 0:
            time.sleep(chance.uniform(0, longest))
        else:
            look = unfinished if kill % 4 == 1 else saved
            wait(process, lambda old=old, look=look: look("killed") - old)
            time.sleep(chance.uniform(0, 0.04))
        assert process.is_alive(), "the run must be longer: " + Path("out").read_text()
        process.kill()
        process.join()
        left += bool(unfinished("killed") - old)
    assert left, "no kill was in mid-save"
    code, out = finish(start("--workdir=killed"))
    assert code == 0 and "continuing from step" in out and not unfinished("killed"), out
    assert_same_end(whole, "killed")


@pytest.mark.thorough
def test_killed_20_times(start, whole):
    kill_again_and_again(start, TOY, whole, kills=20, longest=1.5)


@pytest.mark.full
def test_the_digits_network_killed_20_times(start):
    code, out = finish(start(*DIGITS, "--workdir=whole"))
    assert code == 0, out
    kill_again_and_again(start, DIGITS, "whole", kills=20, longest=6.0)


@pytest.mark.thorough
def test_stopped_by_signals_while_starting_training_and_sampling(start, whole):
    """SIGTERM and Ctrl-C end the process in seconds, with their exit codes, and training with a checkpoint of its last step."""
    more = words("toy2d.py:smoke", sampler__steps=1000, sampler__num_samples=100_000, sampler__batch_size=100_000)[1:]
    told, steps = "The same command goes on, with training from its last checkpoint.", []
    for number, phase, given in (
        (signal.SIGTERM, "compiling", []),
        (signal.SIGTERM, "step 4/", []),
        (signal.SIGINT, "continuing from", []),
        (signal.SIGINT, "step 40/", []),
        (signal.SIGTERM, "sampling", more),
    ):
        process = start(*TOY, *given, "--workdir=stopped")
        wait_for_words(process, phase)
        asked = time.monotonic()
        os.kill(process.pid, number)
        code, out = finish(process)
        assert code == 128 + number and f"Stopped by {number.name}. {told}" in out and "Traceback" not in out, out
        assert time.monotonic() - asked < 60  # it takes a second; machines that do much else
        if "saved" in out:
            steps.append(max(saved("stopped")))
            assert f"checkpoint of step {steps[-1]} saved" in out
    assert len(steps) == 2 and 4 <= steps[0] < steps[1] < 300, steps
    code, out = finish(start(*TOY, "--workdir=stopped"))
    assert code == 0, out
    assert_same_end(whole, "stopped")


def test_a_full_disk_loses_nothing(start, whole):
    """From step 30 on a limit lets small files pass but no checkpoint: told, the one before stays, the run goes on from it."""
    code, out = finish(start(*TOY, "--config.train.keep_last=30", "--workdir=full", before=FULL_FROM_30))
    assert code == 2 and "A checkpoint could not be written to" in out and "File too large" in out, out
    assert f"The one of step {max(saved('full'))} is sound." in out and "Make room" in out and "Traceback" not in out, out
    assert 30 <= max(saved("full")) < 300 and unfinished("full")
    code, out = finish(start(*TOY, "--workdir=full"))
    assert code == 0 and "continuing from step" in out and not unfinished("full"), out
    assert_same_end(whole, "full")
