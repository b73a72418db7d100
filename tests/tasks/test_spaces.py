"""Diffusion in a linear space, c times an orthogonal matrix, of a Gaussian: exact against the oracle in pixels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ddpm_jax import images
from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.keys import Purpose, keys_of
from ddpm_jax.diffusion.likelihood import dequantise
from ddpm_jax.diffusion.process import add_noise
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.samplers import SAMPLERS
from ddpm_jax.diffusion.times import TIMES, Examples
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import bits_per_dimension
from ddpm_jax.models import NETWORKS
from ddpm_jax.runs.run import Run
from ddpm_jax.tasks import build, diffusion
from ddpm_jax.tasks.noising import ENCODE, NOISE, TIME
from ddpm_jax.tasks.spaces import Space
from ddpm_jax.training.step import State

SHAPE, SCALE = (2, 2, 1), 2.0
MATRIX = SCALE * np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0].astype("f")  # x0 = MATRIX @ pixels
HALF = np.random.default_rng(1).normal(size=(4, 4)) / 8
MEAN, COVARIANCE = np.array([0.2, -0.1, 0.0, 0.3]), HALF @ HALF.T + 0.02 * np.eye(4)
PIXELS = oracle.gaussian(MEAN, COVARIANCE)
STATES = oracle.gaussian(MATRIX @ MEAN, MATRIX @ COVARIANCE @ MATRIX.T)


def linear(shift=0.0):
    """The space; shift: of the random part that `encode` adds, for the tests of its keys."""

    def encode(frozen, pictures, keys):
        noise = shift * jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        return pictures.reshape(len(pictures), -1) @ frozen["matrix"].T + noise

    def decode(frozen, x):
        return (x @ frozen["matrix"] / SCALE**2).reshape(-1, *SHAPE)

    def log_volume(frozen):
        return jnp.linalg.slogdet(frozen["matrix"])[1]

    return Space((4,), encode, decode, log_volume, frozen=lambda: {"matrix": MATRIX})


class Exact(nn.Module):
    """The eps of the Gaussian in the space, of the process vp, which shows time as 999 t."""

    outputs: int = 1

    @nn.compact
    def __call__(self, x, time, keys=None):  # noqa: ARG002
        one = self.param("one", nn.initializers.ones, ())
        return one * oracle.denoiser(STATES, PROCESSES["vp"]())(x, time / 999).eps


@pytest.fixture
def task(tiny_config, monkeypatch):
    monkeypatch.setitem(NETWORKS, "exact", Exact)
    monkeypatch.setattr(diffusion, "space_of", lambda config, image_shape: linear())  # noqa: ARG005
    tiny_config.process.name, tiny_config.network.name = "vp", "exact"
    tiny_config.sampler.update(name="heun", grid="log_snr", steps=25, clip="none", num_samples=2000, batch_size=2000)
    return build(tiny_config, SHAPE)


@pytest.fixture
def run(task, tiny_config, monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    params = task.init(jax.random.key(0))
    state = State(jnp.asarray(0), params, (), (params,), (), jax.tree.map(jnp.asarray, task.frozen()))
    return Run("runs/x", tiny_config, SHAPE, 0, task, state)


def assert_moments(pictures, mean, covariance, sigmas=4.5):
    """Of images [N, 2, 2, 1], within so many standard errors; those of a Gaussian's covariance are known."""
    rows = np.float64(pictures).reshape(len(pictures), -1)
    error = np.sqrt(np.diag(covariance) / len(rows))
    np.testing.assert_array_less(np.abs(rows.mean(0) - mean), sigmas * error)
    error = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / len(rows))
    np.testing.assert_array_less(np.abs(np.cov(rows.T) - covariance), sigmas * error)


def test_samples_are_images_of_the_data(run):
    """Heun's moments in the space, by the oracle, decoded: those are the data's to 2 %, and the samples have them."""
    process, times = run.process, GRIDS["log_snr"](run.process, steps=25)
    start = np.zeros(4), np.eye(4)
    sampler = SAMPLERS["heun"]()
    mean, covariance = oracle.propagate(sampler, oracle.denoiser(STATES, process), process, times, *start)
    back = MATRIX.T / SCALE**2
    mean, covariance = back @ mean, back @ covariance @ back.T
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=0.02 * np.abs(COVARIANCE).max())
    drawn = run.draw(2000, frames=3)
    assert drawn.x.shape == (2000, *SHAPE) and drawn.frames.shape == (3, 2000, *SHAPE)
    assert_moments(drawn.x, MEAN, COVARIANCE)
    np.testing.assert_allclose(drawn.frames[-1], drawn.x, atol=1e-6)
    assert_moments(drawn.frames[0], np.zeros(4), back @ back.T)


def test_the_likelihood_is_that_of_the_pixels(run, tiny_config):
    """Of the dequantised ones, by the exact trace: the oracle's density in pixels, at the noise of t_min in the space."""
    levels = images.to_uint8(np.random.default_rng(3).multivariate_normal(MEAN, COVARIANCE, 6).reshape(-1, *SHAPE))
    tiny_config.eval.update(solver="rk4", steps=120, grid="log_snr", probe="exact", bound_steps=200, bound_terms=0)
    found = run.log_likelihood(levels)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_of(0, Purpose.EVALUATION, jnp.arange(6)), 0)
    x = np.asarray(dequantise(levels, keys)).reshape(6, -1)
    t_min = run.process.t_min.likelihood
    exact = np.float64(oracle.log_density(STATES, run.process, x @ MATRIX.T, t_min)) + 4 * math.log(SCALE)
    near = oracle.log_density(PIXELS, run.process, x, t_min)  # but for the noise of t_min
    np.testing.assert_allclose(exact, near, atol=0.05)
    np.testing.assert_allclose(found.nats, exact - 4 * 7 * math.log(2), atol=0.02)  # float32

    compute = jax.jit(bits_per_dimension.make_compute(run.task, tiny_config, SHAPE))
    many = jnp.repeat(levels[:2], 100, axis=0)
    numbers = compute(run.params, run.state.frozen, many, None, jnp.arange(200))
    gap = np.asarray(numbers["bound"]) - (np.asarray(numbers["ode"]) + 4 * 7 * math.log(2))
    assert gap.std() < 3 and -4 * gap.std() / 200**0.5 < gap.mean() < 0.35  # nats; it is a bound, and a close one
    parts = numbers["bound_prior"] + numbers["bound_terms"].sum(1) + numbers["bound_decoder"]
    np.testing.assert_allclose(parts, numbers["bound"], rtol=1e-4)


@pytest.mark.usefixtures("task")
def test_a_space_that_is_no_bijection_has_no_likelihood_of_images(tiny_config, monkeypatch):
    monkeypatch.setattr(diffusion, "space_of", lambda *_: linear()._replace(log_volume=None))
    for make in (bits_per_dimension.make_ode, bits_per_dimension.make_compute):
        with pytest.raises(UserError, match="likelihood of images is not known .* no bijection .* take a run of pixels"):
            make(build(tiny_config, SHAPE), tiny_config, SHAPE)
    tiny_config.sampler.clip = "rederive"
    with pytest.raises(UserError, match="sampler.clip=rederive is of pixels, and the model's states are none: take none"):
        build(tiny_config, SHAPE)


def test_inpainting_is_through_the_space(run):
    """By moment matching: the exact posterior of the other pixels. Known ones stay, bit for bit; none is put in place."""
    known = np.array([[1, 0], [0, 1]], bool)
    picture = np.array([0.5, 0.0, 0.0, -0.2], "f").reshape(1, *SHAPE)
    drawn = run.inpaint(picture, known, count=2000, method="mmps", iterations=2)
    np.testing.assert_array_equal(drawn[:, known], np.broadcast_to(picture[:, known], (2000, 2, 1)))
    rows, seen, unseen = drawn.reshape(2000, 4), [0, 3], [1, 2]
    gain = COVARIANCE[np.ix_(unseen, seen)] @ np.linalg.inv(COVARIANCE[np.ix_(seen, seen)])
    mean = MEAN[unseen] + gain @ (picture.reshape(4)[seen] - MEAN[seen])
    covariance = COVARIANCE[np.ix_(unseen, unseen)] - gain @ COVARIANCE[np.ix_(seen, unseen)]
    np.testing.assert_allclose(rows[:, unseen].mean(0), mean, atol=0.1 * np.sqrt(np.diag(covariance)).min() + 0.01)
    np.testing.assert_allclose(np.cov(rows[:, unseen].T), covariance, atol=0.15 * np.abs(covariance).max())
    for method in ("repaint", "replacement"):
        with pytest.raises(UserError, match="known pixels cannot be put in place where states are no pixels"):
            run.inpaint(picture, known, method=method, name="ancestral")


def test_images_are_encoded_and_noises_decoded(run):
    """Up and down again; the noise of an image is that of its state. What is near an image is drawn from its noised state."""
    pictures = np.random.default_rng(3).multivariate_normal(MEAN, COVARIANCE, 4).clip(-1, 1).reshape(-1, *SHAPE).astype("f")
    run.config.sampler.update(steps=60)
    noises = run.encode(pictures, name="heun")
    expected = oracle.flow(STATES, run.process, pictures.reshape(4, -1) @ MATRIX.T, run.task.knobs.grid[-1], run.process.t_max)
    np.testing.assert_allclose(noises, expected, atol=0.02)
    np.testing.assert_allclose(run.decode(noises, name="heun"), pictures, atol=0.02)
    near = run.img2img(pictures, until=0.05)
    assert 0.005 < np.abs(near - pictures).max() < 0.5


def test_the_loss_and_the_film_are_of_encoded_examples(tiny_config, task, monkeypatch):
    """With random numbers of the encoder's own, and pictures in pixels."""
    monkeypatch.setattr(diffusion, "space_of", lambda *_: linear(shift=0.1))
    tiny_config.data.flip = True
    task = build(tiny_config, SHAPE)
    frozen, params = task.frozen(), task.init(jax.random.key(0))
    levels = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), np.uint8)
    keys = jax.random.split(jax.random.key(1), 8)
    examples = Examples(keys, jnp.arange(8), 8)
    found, *_ = task.loss(params, frozen, {"image": levels}, examples, (), training=False)
    x0 = linear(0.1).encode(frozen, images.to_model(levels), examples.of(ENCODE))
    t, _ = TIMES["uniform"]().draw(task.process, examples._replace(keys=examples.of(TIME)), ())
    eps = jax.vmap(lambda key: jax.random.normal(key, (4,)))(examples.of(NOISE))
    predicted = oracle.denoiser(STATES, task.process)(add_noise(task.process, x0, eps, t), t).eps
    np.testing.assert_allclose(found, jnp.square(eps - predicted).mean(1), rtol=2e-3)

    film = task.noised(frozen, {"image": levels}, keys, 4)
    assert film.shape == (4, 8, *SHAPE)
    np.testing.assert_array_equal(film[0], images.to_model(levels))
    assert np.abs(film[1] - film[0]).max() < 0.3 < np.abs(film[-1] - film[0]).max()
