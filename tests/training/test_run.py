import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ddpm_jax
from ddpm_jax import command
from ddpm_jax.diffusion.edit import img2img
from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.sample import encode, sample, sample_keys
from ddpm_jax.diffusion.samplers import SAMPLERS, ddim
from ddpm_jax.diffusion.transforms import clipped
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import bits_per_dimension
from ddpm_jax.images import to_model
from ddpm_jax.models import NETWORKS
from ddpm_jax.training import jobs, loop, run_directory
from ddpm_jax.training.run import restore
from ddpm_jax.training.tasks import build


class Toy(nn.Module):
    """A network that compiles at once, and in which a pixel sees its neighbours."""

    @nn.compact
    def __call__(self, x, time, keys=None):  # noqa: ARG002
        w = self.param("w", nn.initializers.normal(), (3,))
        return w[0] + jnp.tanh(x + w[1] + 0.3 * jnp.roll(x, 1, 1)) + w[2] * jnp.cos(time)[:, None, None, None]


@pytest.fixture
def workdir(tiny_config, tiny_source, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    tiny_config.network.name = "toy"
    run_directory.write(tmp_path / "run", tiny_config, (8, 8, 1))
    loop.train(tiny_config, tmp_path / "run", build(tiny_config, (8, 8, 1)), tiny_source, jax.devices()[:1])
    return tmp_path / "run"


def test_a_loaded_run_samples_and_plugs_into_the_kernel(workdir):
    """run.sample is the kernel's sample with run.denoise, run.process and the run's clipping; frames end in the samples."""
    run = ddpm_jax.load(workdir)
    assert run.state.step == 8 and run.config.train.steps == 8
    images = run.sample(4, name="ddim", steps=6, eta=0.5, seed=3)
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.float32

    times = uniform(run.process, steps=6)
    denoise = clipped(run.denoise, run.process)
    by_hand = sample(ddim(eta=0.5), denoise, run.process, times, sample_keys(3, jnp.arange(4)), (8, 8, 1))
    np.testing.assert_allclose(images, by_hand.x, atol=1e-4)

    film = run.trajectory(4, frames=5, name="ddim", steps=6, eta=0.5, seed=3)
    chex.assert_shape(film, (5, 4, 8, 8, 1))
    np.testing.assert_allclose(film[-1], images, atol=1e-4)
    chex.assert_trees_all_equal(run.params, run.state.ema[0])
    assert run.config.sampler.name == "ancestral"

    where = re.escape(repr(str(workdir)))
    assert re.fullmatch(rf"Run\({where}: diffusion of digits \[8 x 8 x 1\], toy, process linear, .* step 8\)", repr(run))

    run.sample(4, name="ddim", steps=np.int64(6), eta=1, seed=4)
    assert len(run.compiled) == 2  # one more for the film; eta and seed are arguments


def test_images_go_up_to_their_noises_and_down_again(workdir):
    """encode and decode are the kernel's with run.denoise, undone by each other but for the error of 200 steps; img2img too."""
    run = ddpm_jax.load(workdir)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    x = np.asarray(to_model(pictures))
    for name, tolerance in (("ddim", 0.2), ("heun", 0.02)):
        times = uniform(run.process, steps=200)
        latents = run.encode(pictures, name=name, steps=200)
        by_hand = encode(SAMPLERS[name](), run.denoise, run.process, times[::-1], x)
        np.testing.assert_allclose(latents, by_hand.x, atol=2e-4)
        np.testing.assert_allclose(run.decode(latents, name=name, steps=200), x, atol=tolerance)

    grid, keys = uniform(run.process, steps=10), sample_keys(5, jnp.arange(3))
    near = img2img(ddim(eta=0.5), clipped(run.denoise, run.process), run.process, grid[grid <= 0.6], keys, x)
    np.testing.assert_allclose(run.img2img(x, 0.6, name="ddim", eta=0.5, steps=10, seed=5), near.x, atol=1e-4)

    for call, words in (
        (lambda: run.encode(pictures, eta=0.5), "cannot be encoded so: this sampler draws noise"),
        (lambda: run.decode(latents, eta=0.5), "cannot be decoded so: this sampler draws noise"),
        (lambda: run.img2img(x, 0.3, name="ddim", steps=10, frames=5), "cannot be sampled so: frames must be 0 or"),
        (lambda: run.encode(x, until=0.5), "no config key 'sampler.until'"),
        (lambda: run.sample(3, up=True), "no config key 'sampler.up'"),
        (lambda: run.sample(3, name="heun", eta=0.7), "sampler.eta does not apply to sampler.name=heun"),
        (lambda: run.inpaint(x, x[0, ..., 0] > 0, method="dps", resamplings=5), "inpaint.resamplings does not apply"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    run.config.sampler.update(name="ddim", eta=1.0)  # which encoding does not look at
    again = run.encode(pictures, steps=200)
    np.testing.assert_allclose(again, run.encode(pictures, name="ddim", eta=0.0, steps=200), atol=1e-5)
    with pytest.raises(UserError, match=r"The images to encode must be of .* shape, \[N, 8, 8, 1\], found \[3, 8, 7, 1\]"):
        run.encode(pictures[:, :, :7])
    with pytest.raises(UserError, match="The images must be uint8, or floats from -1 to 1, found float64"):
        run.img2img(2.0 * x.astype(float), 0.5)
    with pytest.raises(UserError, match=r"until must be a time from the earliest of the grid, 0.001, to t_max, 1, found 1.5"):
        run.img2img(x, 1.5)
    with pytest.raises(UserError, match="until must be a time .* found '0.5'"):
        run.img2img(x, "0.5")
    with pytest.raises(UserError, match=r"The noises must be of the run's shape"):
        run.decode(latents[0])
    for wrong in (pictures, np.where(latents > 0, np.nan, latents), np.where(latents > 0, np.inf, latents)):
        with pytest.raises(UserError, match="The noises must be finite floats, found"):
            run.decode(wrong)
    with pytest.raises(UserError, match="num_samples is told by the first argument"):
        run.sample(3, num_samples=5)


def test_every_average_can_be_sampled(point_config, point_source, tmp_path):
    """By number; the run's config names the one of `params`. Another costs no compilation."""
    point_config.ema.decays = (0.9, 0.0)
    point_config.optim.learning_rate = 0.1
    run_directory.write(tmp_path, point_config, (2,))
    loop.train(point_config, tmp_path, build(point_config, (2,)), point_source, jax.devices()[:1])
    run = ddpm_jax.load(tmp_path)
    first, second = run.sample(4), run.sample(4, ema=1)
    assert np.abs(first - second).max() > 1e-3 and len(run.compiled) == 1
    np.testing.assert_array_equal(first, run.sample(4, ema=0))
    run.config.sampler.ema = 1
    np.testing.assert_array_equal(second, run.sample(4))
    chex.assert_trees_all_equal(run.params, run.state.ema[1])
    with pytest.raises(UserError, match="sampler.ema is 2"):
        run.sample(4, ema=2)


def test_a_checkpoint_before_the_newest(point_config, point_source, tmp_path):
    """Loaded, sampled and evaluated by its step; the newest where none is named."""
    point_config.train.update(steps=4, checkpoint_every=2, keep_last=3)
    point_config.sampler.update(num_samples=4, frames=0, steps=2)
    run_directory.write(tmp_path, point_config, (2,))
    newest = loop.train(point_config, tmp_path, build(point_config, (2,)), point_source, jax.devices()[:1])
    run = ddpm_jax.load(tmp_path, step=2)
    assert run.state.step == 2 and newest.step == ddpm_jax.load(tmp_path).state.step == 4
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (run.params, newest.ema[0])), strict=True))

    config, _ = command.resolve("", str(tmp_path), "sample", [("sampler.checkpoint", "2")])
    jobs.sample(config, tmp_path)
    (path,) = (tmp_path / "samples").glob("step_00000002_*.npz")
    assert "checkpoint" not in path.name and json.loads(path.with_suffix(".json").read_text())["checkpoint_step"] == 2
    config, _ = command.resolve("", str(tmp_path), "eval", [("sampler.checkpoint", "2")])
    assert bits_per_dimension.conditions_of(restore(tmp_path, config))["checkpoint_step"] == 2

    with pytest.raises(UserError, match="no checkpoint of step 3 in .*: those there are of steps 2, 4"):
        ddpm_jax.load(tmp_path, step=3)
    with pytest.raises(UserError, match="A run in Python is one checkpoint.*step="):
        run.sample(4, checkpoint=4)
    next((tmp_path / "checkpoints" / "2" / "notes").iterdir()).write_text("{}")
    with pytest.raises(UserError, match="The checkpoint of step 2 in .* is damaged .*: take another, of step 4"):
        ddpm_jax.load(tmp_path, step=2)


def test_mistakes(workdir, tmp_path):
    run = ddpm_jax.load(workdir)
    with pytest.raises(UserError, match="sampler.nmae"):
        run.sample(4, nmae="ddim")
    with pytest.raises(UserError, match="sampler.name takes one of.*ddim"):
        run.sample(4, name="ddmi")
    with pytest.raises(UserError, match="sampler.steps takes an int"):
        run.sample(4, steps="20")
    with pytest.raises(UserError, match="two frames"):
        run.trajectory(4, frames=1)
    with pytest.raises(UserError, match="There is no run in"):
        ddpm_jax.load(tmp_path / "nowhere")
