"""Frozen parameters: arguments of the step, in no gradient, no optimizer and no average, and in the checkpoint once."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax.errors import UserError
from ddpm_jax.optimizers import optimizer_of
from ddpm_jax.runs import resumable, run_directory
from ddpm_jax.tasks import build, diffusion
from ddpm_jax.tasks.spaces import Space
from ddpm_jax.training import parallel
from ddpm_jax.training.step import init_state, make_step

LARGE = np.random.default_rng(0).normal(size=(600, 600)).astype("f")  # 1.4 MB


def space(large=LARGE):
    """Points times a corner of a large matrix."""
    corner = lambda frozen: frozen["large"][:2, :2]  # noqa: E731
    return Space(
        (2,), lambda frozen, x, keys: x @ corner(frozen), lambda frozen, x: x @ jnp.linalg.inv(corner(frozen)),  # noqa: ARG005
        lambda frozen: jnp.linalg.slogdet(corner(frozen))[1], frozen=lambda: {"large": large},
    )  # fmt: skip


@pytest.fixture
def config(point_config, monkeypatch):
    monkeypatch.setattr(diffusion, "space_of", lambda *_: space())
    point_config.train.update(steps=6, checkpoint_every=3, sample_every=0)
    point_config.sampler.update(name="ddim")
    return point_config


def train(config, source, workdir, devices=1, steps=6):
    config.train.steps = steps
    run_directory.write(workdir, config, (2,), 3)
    task = build(config, (2,), 3)
    return jax.device_get(resumable.train(config, workdir, task, source, jax.devices()[:devices]))


def biggest_constant(program):
    """The most characters of any constant in a lowered program's text."""
    return max(map(len, re.findall(r"dense<[^>]*>", program)), default=0)


@pytest.mark.parametrize("devices", [1, 4])
def test_no_step_changes_them_and_no_program_holds_them(config, point_source, devices):
    task, optimizer = build(config, (2,), 3), optimizer_of(config)
    frozen = jax.tree.map(jnp.asarray, task.frozen())
    state = init_state(task, optimizer, 0, 1)._replace(frozen=frozen)
    assert all(LARGE.shape != leaf.shape for leaf in jax.tree.leaves(state._replace(frozen=())))
    on = jax.devices()[:devices]
    one_device = make_step(task, optimizer, seed=0, ema_decays=(0.9,))
    step = parallel.over_devices(one_device, on, (None, None, 1), (None, None))
    rows = parallel.split(np.arange(16, dtype=np.int32)[None], on, axis=1)
    state = parallel.replicate(state, on)
    program = step.lower(state, point_source.arrays, rows.swapaxes(0, 1)).as_text()
    assert biggest_constant(program) < 1e6 < biggest_constant(jax.jit(lambda x: x + LARGE).lower(LARGE).as_text())
    new, metrics = step(state, point_source.arrays, rows.swapaxes(0, 1))
    np.testing.assert_array_equal(new.frozen["large"], LARGE)
    assert np.isfinite(metrics["loss"]).all()
    assert any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (new.params, state.params)), strict=True))

    draws = jax.jit(lambda params, frozen, knobs, i: task.sample(params, frozen, knobs, np.uint32(0), i))
    assert biggest_constant(draws.lower(state.params, frozen, task.knobs, jnp.arange(2)).as_text()) < 1e6


def test_a_run_directory_holds_them_and_continues_with_them(config, point_source, tmp_path, monkeypatch):
    """Bit for bit, also where the autoencoder that they came from is another meanwhile; sampling takes the run's own."""
    whole = train(config, point_source, tmp_path / "whole")
    train(config, point_source, tmp_path / "parts", steps=3)
    monkeypatch.setattr(diffusion, "space_of", lambda *_: space(LARGE + 1))
    parts = train(config, point_source, tmp_path / "parts")
    for a, b in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(parts.frozen["large"], LARGE)

    run = ddpm_jax.load(tmp_path / "whole")
    np.testing.assert_array_equal(run.state.frozen["large"], LARGE)
    points = np.array([[0.3, -0.2], [1.0, 0.5]], "f")
    up = run.encode(points, steps=40, name="heun")
    np.testing.assert_allclose(run.decode(up, steps=40, name="heun"), points, atol=0.05)

    monkeypatch.setattr(diffusion, "space_of", lambda *_: Space((2,), lambda _, x, keys: x, lambda _, x: x, None))  # noqa: ARG005
    with pytest.raises(UserError, match="another network or optimizer: frozen.large is unknown to this config"):
        ddpm_jax.load(tmp_path / "whole")


def test_a_run_without_any_writes_nothing_more(point_config, point_source, tmp_path):
    point_config.train.update(steps=2, checkpoint_every=2, sample_every=0)
    state = train(point_config, point_source, tmp_path, steps=2)
    assert state.frozen == () and jax.tree.leaves(state.frozen) == []
    notes = json.loads((tmp_path / "checkpoints" / "2" / "notes" / "metadata").read_text())["notes"]
    names = json.loads(notes)["sha256"]
    assert names and not [name for name in names if name.startswith("frozen")]
