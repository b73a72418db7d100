import itertools
import json
import os
import signal
import time

import chex
import jax
import numpy as np
import pytest

from ddpm_jax import signals
from ddpm_jax.data import Source, Streamed
from ddpm_jax.errors import Diverged, UserError
from ddpm_jax.training import checkpoints, loop, run_directory
from ddpm_jax.training.tasks import build


def train(config, source, workdir, devices=1):
    run_directory.write(workdir, config, source.image_shape)
    return loop.train(config, workdir, build(config, source.image_shape), source, jax.devices()[:devices])


def metrics(workdir):
    """The logged lines without the wall clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "per_second" not in key} for line in lines]


def test_stopping_and_continuing_changes_nothing(tiny_config, tiny_source, tmp_path, capsys):
    """Stopped at a step that no log line falls on: parameters, averages, optimizer state and metrics are bit-equal."""
    tiny_config.train.update(steps=10, log_every=4, checkpoint_every=3, sample_every=0)
    whole = train(tiny_config, tiny_source, tmp_path / "whole")

    tiny_config.train.steps = 6
    train(tiny_config, tiny_source, tmp_path / "parts")
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss": 99.0}\n')  # logged, then killed before the next checkpoint
    tiny_config.train.steps = 10
    parts = train(tiny_config, tiny_source, tmp_path / "parts")

    assert "continuing from step 6" in capsys.readouterr().out
    chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(parts))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert [line["step"] for line in metrics(tmp_path / "whole")] == [4, 8]

    again = train(tiny_config, tiny_source, tmp_path / "parts")
    assert "The run is complete: 10 steps" in capsys.readouterr().out
    chex.assert_trees_all_equal(jax.device_get(whole), again)


def test_metrics_are_those_of_the_steps(tiny_config, tiny_source, tmp_path):
    """A line holds the mean over its interval: logging every step and every fourth agree."""
    tiny_config.train.update(steps=4, log_every=1, checkpoint_every=4, sample_every=0)
    train(tiny_config, tiny_source, tmp_path / "each")
    tiny_config.train.log_every = 4
    train(tiny_config, tiny_source, tmp_path / "fourth")
    each, fourth = metrics(tmp_path / "each"), metrics(tmp_path / "fourth")
    assert len(each) == 4 and len(fourth) == 1
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(fourth[0][name], np.mean([line[name] for line in each]), rtol=1e-6)
    assert fourth[0]["param_norm"] == each[-1]["param_norm"]
    np.testing.assert_allclose([line["learning_rate"] for line in each], [1e-4, 2e-4, 2e-4, 2e-4], rtol=1e-6)


def test_divergence_stops_at_the_first_bad_step_and_keeps_the_last_good_checkpoint(tiny_config, tiny_source, tmp_path):
    """A learning rate so large that the second loss overflows; the checkpoint before it is finite and stays."""
    tiny_config.train.update(steps=6, log_every=6, checkpoint_every=1, sample_every=0)
    tiny_config.optim.update(learning_rate=1e15, warmup_steps=0)
    with pytest.raises(Diverged, match=r"step (\d+) are not finite. The checkpoint of step \d+ stays") as error:
        train(tiny_config, tiny_source, tmp_path / "run")
    first_bad = int(str(error.value).split("parameters of step ")[1].split()[0])
    manager = checkpoints.open_manager(tmp_path / "run" / "checkpoints")
    assert manager.latest_step() == first_bad - 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_grids_on_the_way_come_from_the_same_noise(tiny_config, tiny_source, tmp_path):
    tiny_config.train.update(steps=3, sample_every=1, checkpoint_every=3)
    tiny_config.optim.learning_rate = 1e-30
    train(tiny_config, tiny_source, tmp_path / "run")
    grids = sorted((tmp_path / "run" / "samples").glob("*.png"))
    assert [path.name for path in grids] == ["training_00000001.png", "training_00000002.png"]
    assert grids[0].read_bytes() == grids[1].read_bytes()


def test_steps_per_call(tiny_config):
    tiny_config.train.update(steps=1000, log_every=100, sample_every=0, checkpoint_every=250)
    assert loop.steps_per_call(tiny_config, 0, "cpu") == 1
    assert loop.steps_per_call(tiny_config, 0, "gpu") == 10
    assert loop.steps_per_call(tiny_config, 15, "gpu") == 5
    tiny_config.train.steps_per_call = 25
    assert loop.steps_per_call(tiny_config, 0, "cpu") == 25
    assert loop.steps_per_call(tiny_config, 15, "cpu") == 5  # stopped at 15 with another number of steps per call
    tiny_config.train.steps_per_call = 20
    with pytest.raises(UserError, match="steps_per_call is 20.*take a divisor of 50"):
        loop.steps_per_call(tiny_config, 0, "cpu")


@pytest.fixture
def points_config(tiny_config):
    """A perceptron on points, which compiles in a second."""
    tiny_config.network.name = "mlp"
    return tiny_config


@pytest.fixture
def points():
    image = np.random.default_rng(0).normal(size=(48, 2)).astype(np.float32)
    return Source({"image": image, "label": np.zeros(48, np.int32)}, 1)


def test_stopped_by_signals_and_continued(points_config, points, tmp_path, capsys):
    """With streamed data, at steps that no log line or checkpoint falls on: they are saved, and the end is bit-equal."""
    points_config.train.update(steps=14, log_every=14, checkpoint_every=14, sample_every=7)
    whole = train(points_config, points, tmp_path / "whole")

    def source():
        """Sends a signal at its fifth batch (three are read before the first step, which compiles)."""
        batches = itertools.count(1)

        def gather(indices):
            if next(batches) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)  # the loop waits for this batch, and sees the signal first
            return points.gather(indices)

        return Streamed(48, (2,), 1, gather)

    for _ in range(2):
        with signals.listening(), pytest.raises(signals.Stopped):
            train(points_config, source(), tmp_path / "stopped")
    stopped = train(points_config, points, tmp_path / "stopped")
    out = capsys.readouterr().out
    steps = [line.split()[3] for line in out.splitlines() if line.endswith("saved")]
    assert len(steps) == 2 and all(f"continuing from step {step}" in out for step in steps), out
    chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(stopped))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")
    grid = "samples/training_00000007.png"
    assert (tmp_path / "stopped" / grid).read_bytes() == (tmp_path / "whole" / grid).read_bytes()


def test_a_grid_that_a_signal_forestalled_is_drawn_when_the_run_goes_on(points_config, points, tmp_path, monkeypatch):
    """The step is saved without its grid, at once."""
    points_config.train.update(steps=4, checkpoint_every=4, sample_every=2)

    def make_preview(*_):
        def draw(_):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

        return draw

    with monkeypatch.context() as patch, signals.listening(), pytest.raises(signals.Stopped):
        patch.setattr(loop.sampling, "make_preview", make_preview)
        train(points_config, points, tmp_path / "run")
    assert not list((tmp_path / "run" / "samples").glob("*.png"))
    assert checkpoints.open_manager(tmp_path / "run" / "checkpoints").latest_step() == 2
    train(points_config, points, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "samples").glob("*.png")] == ["training_00000002.png"]


def test_a_grid_that_cannot_be_written_is_told_and_passed_over(points_config, points, tmp_path, capsys):
    points_config.train.update(steps=3, sample_every=1, checkpoint_every=3)
    (tmp_path / "run" / "samples" / "training_00000001.png").mkdir(parents=True)
    train(points_config, points, tmp_path / "run")
    assert "training_00000001.png" in capsys.readouterr().out
    assert (tmp_path / "run" / "samples" / "training_00000002.png").is_file()
