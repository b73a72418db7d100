import itertools
import os
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ddpm_jax import signals
from ddpm_jax.data import Source, Streamed, batch_indices
from ddpm_jax.diffusion.keys import Purpose, words_of
from ddpm_jax.diffusion.losses import WEIGHTINGS
from ddpm_jax.diffusion.sample import Sampled
from ddpm_jax.errors import Diverged, UserError
from ddpm_jax.models import NETWORKS
from ddpm_jax.runs import checkpoints, resumable, run_directory
from ddpm_jax.tasks import build
from ddpm_jax.training import loop

ORDER = words_of(0, Purpose.BATCHES)


def train(config, source, workdir, devices=1):
    run_directory.write(workdir, config, source.image_shape)
    task = build(config, source.image_shape, source.num_classes)
    return jax.device_get(resumable.train(config, workdir, task, source, jax.devices()[:devices]))


def poisoned(source, example=5):
    """With one example that is no number: one step of each epoch of three cannot update."""
    image = source.arrays["image"].copy()
    image[example] = np.nan
    return Source(source.arrays | {"image": image}, source.num_classes)


@pytest.mark.parametrize("everything", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_stopping_and_continuing_changes_nothing(everything, request, tmp_path, capsys, metrics):
    """Stopped at a step that no log line falls on: parameters, averages, optimizer state and metrics are bit-equal.

    Everything: two averages, two micro-batches on two devices, labels, times by the losses before, and updates skipped before
    and after the stop.
    """
    kind = "point" if everything else "tiny"
    config, source = (request.getfixturevalue(f"{kind}_{name}") for name in ("config", "source"))
    config.train.update(steps=10, log_every=4, checkpoint_every=3, sample_every=0)
    if everything:
        config.ema.decays = (0.9, 0.5)
        config.cond.update(labels=True, dropout=0.5)
        config.process.steps, config.times.name, config.times.kept = 5, "importance", 2
        config.train.update(micro_batches=2, on_nonfinite="skip", max_skips=3)
        source = poisoned(source)
    devices = 1 + everything
    whole = train(config, source, tmp_path / "whole", devices)

    config.train.steps = 6
    train(config, source, tmp_path / "parts", devices)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss": 99.0}\n')  # logged, then killed before the next checkpoint
    config.train.steps = 10
    parts = train(config, source, tmp_path / "parts", devices)

    assert "continuing from step 6" in capsys.readouterr().out
    chex.assert_trees_all_equal(whole, parts)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    if everything:
        updates = sum(5 not in batch_indices(ORDER, k, 48, 16) for k in range(10))
        assert whole.history.counts.sum() == 16 * updates < 160 and (whole.history.counts >= 2).all()
    assert [line["step"] for line in metrics(tmp_path / "whole")] == [4, 8]
    assert [line["skipped"] > 0 for line in metrics(tmp_path / "whole")] == [everything] * 2

    again = train(config, source, tmp_path / "parts", devices)
    assert "The run is complete: 10 steps" in capsys.readouterr().out
    chex.assert_trees_all_equal(whole, again)


@pytest.mark.thorough
@pytest.mark.parametrize("before, after", [(8, 1), (1, 8)])
def test_continued_on_another_number_of_devices(before, after, point_config, point_source, tmp_path, metrics):
    """The losses agree to 1e-5 of themselves, the parameters and averages to 2e-4, as those of the steps do."""
    point_config.train.update(steps=6, log_every=1, checkpoint_every=3, sample_every=0)
    whole = train(point_config, point_source, tmp_path / "whole", before)
    point_config.train.steps = 3
    train(point_config, point_source, tmp_path / "parts", before)
    point_config.train.steps = 6
    parts = train(point_config, point_source, tmp_path / "parts", after)
    assert parts.step == whole.step == 6
    losses = [[line["loss"] for line in metrics(tmp_path / name)] for name in ("whole", "parts")]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    chex.assert_trees_all_close((whole.params, whole.ema), (parts.params, parts.ema), atol=2e-4)


@pytest.mark.thorough
def test_the_start_of_the_log_says_the_batch(point_config, point_source, tmp_path, capsys):
    point_config.train.update(steps=1, micro_batches=2)
    train(point_config, point_source, tmp_path, devices=4)
    words = "batch size 16 (devices x micro-batches x examples: 4 x 2 x 2), learning rate 0.0002 after a warm-up of 2 steps"
    assert words in capsys.readouterr().out


@pytest.mark.thorough
def test_metrics_are_those_of_the_steps(point_config, point_source, tmp_path, metrics):
    """A line holds the mean over its interval: logging every step and every fourth agree."""
    point_config.train.update(steps=4, log_every=1, checkpoint_every=4, sample_every=0)
    train(point_config, point_source, tmp_path / "each")
    point_config.train.log_every = 4
    train(point_config, point_source, tmp_path / "fourth")
    each, fourth = metrics(tmp_path / "each"), metrics(tmp_path / "fourth")
    assert len(each) == 4 and len(fourth) == 1
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(fourth[0][name], np.mean([line[name] for line in each]), rtol=1e-6)
    assert fourth[0]["param_norm"] == each[-1]["param_norm"]
    np.testing.assert_allclose([line["learning_rate"] for line in each], [1e-4, 2e-4, 2e-4, 2e-4], rtol=1e-6)


def test_what_is_told_on_the_way(point_config, point_source, tmp_path, monkeypatch, metrics):
    """The held-out loss and the pictures are those of the average that sampler.ema names; the learning rate is that of the last
    update made. One example is no number, and the step that holds it is skipped."""
    point_config.train.update(steps=4, log_every=1, checkpoint_every=2, keep_last=2, sample_every=2, on_nonfinite="skip")
    point_config.ema.decays, point_config.sampler.ema = (0.0, 0.9), 1
    point_config.optim.update(warmup_steps=4, learning_rate=0.04)
    point_config.eval.loss_every = 2
    measured, drawn, source = [], [], poisoned(point_source)
    monkeypatch.setattr(loop, "make_loss", lambda *_: lambda params, _: measured.append(jax.device_get(params)) or 1.5)
    preview = lambda params, _: drawn.append(jax.device_get(params)) or Sampled(np.zeros((4, 2), "f"), 1)  # noqa: E731
    monkeypatch.setattr(resumable.sampling, "make_preview", lambda *_: preview)
    run_directory.write(tmp_path, point_config, (2,))
    task = build(point_config, (2,), 3)
    state = resumable.train(point_config, tmp_path, task, source, jax.devices()[:1], held_out=point_source)
    chex.assert_trees_all_equal(measured[1], jax.device_get(state.ema[1]))
    chex.assert_trees_all_equal(drawn, measured[:1])
    for earlier in (measured[0], jax.device_get(state.ema[0])):
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (earlier, measured[1])), strict=True))
    skipped = [5 in batch_indices(ORDER, k, 48, 16) for k in range(4)]
    assert not skipped[0] and sum(skipped) == 1
    rates = [0.01 * updates for updates in np.cumsum(np.logical_not(skipped))]
    np.testing.assert_allclose([line["learning_rate"] for line in metrics(tmp_path)], rates, rtol=1e-6)
    assert [line.get("eval_loss") for line in metrics(tmp_path)] == [None, 1.5, None, 1.5]
    point_config.train.steps = 5  # so that step 4 gets the picture that it had not got as the last one
    resumable.train(point_config, tmp_path, task, source, jax.devices()[:1], held_out=point_source)
    chex.assert_trees_all_equal(drawn, measured)


@pytest.mark.thorough
def test_divergence_stops_at_the_first_bad_step_and_keeps_the_checkpoint(point_config, point_source, tmp_path, metrics):
    """One batch holds the example that is no number; with `skip` the run goes on from there."""
    point_config.train.update(steps=6, log_every=6, checkpoint_every=1, sample_every=0)
    source = poisoned(point_source)
    first_bad = next(k for k in range(3) if 5 in batch_indices(ORDER, k, 48, 16)) + 1
    assert first_bad > 1
    words = f"at step {first_bad} not finite: the loss, the gradient, the updated.*step {first_bad - 1} stays.*=skip"
    with pytest.raises(Diverged, match=words):
        train(point_config, source, tmp_path / "run")
    manager = checkpoints.open_manager(tmp_path / "run" / "checkpoints")
    assert manager.latest_step() == first_bad - 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()

    point_config.train.on_nonfinite = "skip"
    state = train(point_config, source, tmp_path / "run")
    assert state.step == 6 and metrics(tmp_path / "run")[0]["skipped"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.thorough
def test_skipped_updates_are_counted_and_limited(point_config, point_source, tmp_path, capsys, metrics):
    """A line that holds skipped steps alone has no loss; the rate of the warm-up is that of the updates made."""
    point_config.train.update(steps=6, log_every=1, checkpoint_every=6, sample_every=0, on_nonfinite="skip", max_skips=3)
    point_config.optim.warmup_steps = 4
    train(point_config, poisoned(point_source, 10), tmp_path / "run")
    lines = metrics(tmp_path / "run")
    bad = [10 in batch_indices(ORDER, k, 48, 16) for k in range(6)]
    assert [line["loss"] is None for line in lines] == bad and sum(bad) == 2
    assert [line["skipped"] for line in lines] == np.cumsum(bad).tolist()
    updates = np.maximum(np.cumsum(np.logical_not(bad)), 1)
    np.testing.assert_allclose([line["learning_rate"] for line in lines], 5e-5 * np.minimum(updates, 4), rtol=1e-6)
    assert "2 skipped" in capsys.readouterr().out

    point_config.train.update(steps=3, max_skips=2)
    train(point_config, poisoned(point_source, 10), tmp_path / "stopped")
    point_config.train.steps = 6
    assert bad[2] and bad[3]  # the last of an epoch and the first of the next; the stop in between is not forgotten
    with pytest.raises(Diverged, match=r"at step 4 not finite.*and 2 updates in a row were skipped .train.max_skips"):
        train(point_config, poisoned(point_source, 10), tmp_path / "stopped")


class Rooted(nn.Module):
    """A network of two parameters, 0 at first, of which it takes the root."""

    @nn.compact
    def __call__(self, x, time, keys=None):  # noqa: ARG002 - the signature of every network
        return x + jnp.sqrt(self.param("w", nn.initializers.zeros, x.shape[1:]))


@pytest.mark.thorough
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_debug_nans_names_the_operation_and_its_line(where, point_config, point_source, tmp_path, monkeypatch):
    """The logarithm of a negative weight, and the slope of a square root at 0; in micro-batches."""
    monkeypatch.setitem(NETWORKS, "rooted", Rooted)
    if where == "loss":
        monkeypatch.setitem(WEIGHTINGS, "simple", lambda: lambda _, t: jnp.log(-t))
    else:
        point_config.network.name = "rooted"
    point_config.train.update(debug_nans=True, micro_batches=2)
    point_config.times.name = "importance"
    words = {"loss": r"log, in .*test_loop.py, line \d+: .*jnp.log\(-t\)", "gradient": r"div, in .*jnp.sqrt\(self.param"}
    with pytest.raises(Diverged, match=f"after step 0, comes from {words[where]}"):
        train(point_config, point_source, tmp_path, devices=2)


@pytest.mark.thorough
def test_grids_on_the_way_come_from_the_same_noise(point_config, point_source, tmp_path):
    point_config.train.update(steps=3, sample_every=1, checkpoint_every=3)
    point_config.optim.learning_rate = 1e-30
    train(point_config, point_source, tmp_path / "run")
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


def test_stopped_by_signals_and_continued(point_config, point_source, tmp_path, capsys, metrics):
    """With streamed data, at steps that no log line or checkpoint falls on: they are saved, and the end is bit-equal."""
    point_config.train.update(steps=14, log_every=14, checkpoint_every=14, sample_every=7)
    whole = train(point_config, point_source, tmp_path / "whole")

    def source():
        """Sends a signal at its fifth batch (three are read before the first step, which compiles)."""
        batches = itertools.count(1)

        def gather(indices):
            if next(batches) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)  # the loop waits for this batch, and sees the signal first
            return point_source.gather(indices)

        return Streamed(48, (2,), 3, gather)

    for _ in range(2):
        with signals.listening(), pytest.raises(signals.Stopped):
            train(point_config, source(), tmp_path / "stopped")
    stopped = train(point_config, point_source, tmp_path / "stopped")
    out = capsys.readouterr().out
    steps = [line.split()[3] for line in out.splitlines() if line.endswith("saved")]
    assert len(steps) == 2 and all(f"continuing from step {step}" in out for step in steps), out
    chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(stopped))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "stopped")
    grid = "samples/training_00000007.png"
    assert (tmp_path / "stopped" / grid).read_bytes() == (tmp_path / "whole" / grid).read_bytes()


def test_a_grid_that_a_signal_forestalled_is_drawn_when_the_run_goes_on(point_config, point_source, tmp_path, monkeypatch):
    """The step is saved without its grid, at once."""
    point_config.train.update(steps=4, checkpoint_every=4, sample_every=2)

    def make_preview(*_):
        def draw(*_):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

        return draw

    with monkeypatch.context() as patch, signals.listening(), pytest.raises(signals.Stopped):
        patch.setattr(resumable.sampling, "make_preview", make_preview)
        train(point_config, point_source, tmp_path / "run")
    assert not list((tmp_path / "run" / "samples").glob("*.png"))
    assert checkpoints.open_manager(tmp_path / "run" / "checkpoints").latest_step() == 2
    train(point_config, point_source, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "samples").glob("*.png")] == ["training_00000002.png"]


def test_the_checkpoint_comes_before_the_grid_of_its_step(point_config, point_source, tmp_path, monkeypatch):
    """Whatever ends the drawing, the step is on the disk; the grid is drawn when the run goes on."""
    point_config.train.update(steps=4, checkpoint_every=2, sample_every=2)

    def make_preview(*_):
        def draw(*_):
            assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
            raise MemoryError("RESOURCE_EXHAUSTED")

        return draw

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(resumable.sampling, "make_preview", make_preview)
        train(point_config, point_source, tmp_path / "run")
    monkeypatch.setattr(resumable.sampling, "make_preview", lambda *_: lambda *_: Sampled(np.zeros((4, 2), "f"), 1))
    assert train(point_config, point_source, tmp_path / "run").step == 4
    assert [path.name for path in (tmp_path / "run" / "samples").glob("*.png")] == ["training_00000002.png"]


def test_a_grid_that_cannot_be_written_is_told_and_passed_over(point_config, point_source, tmp_path, capsys):
    point_config.train.update(steps=3, sample_every=1, checkpoint_every=3)
    (tmp_path / "run" / "samples" / "training_00000001.png").mkdir(parents=True)
    train(point_config, point_source, tmp_path / "run")
    assert "training_00000001.png" in capsys.readouterr().out
    assert (tmp_path / "run" / "samples" / "training_00000002.png").is_file()
