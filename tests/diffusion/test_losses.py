"""Losses against the posterior variance of a Gaussian, types against each other, and the distributions of training times."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm
from scipy.stats import uniform as flat

from ddpm_jax.diffusion.losses import WEIGHTINGS, denoising_loss
from ddpm_jax.diffusion.oracle import denoiser, gaussian
from ddpm_jax.diffusion.predictions import PREDICTIONS
from ddpm_jax.diffusion.process import add_noise, derivative
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.times import TIMES, log_normal, uniform

ALL = {name: make() for name, make in PREDICTIONS.items()}
WEIGHTS = [WEIGHTINGS[name]() for name in ("simple", "x0", "v", "velocity", "edm")]
MEAN, STD = 0.3, 0.5


@jax.jit
def least_losses(process, t):
    """Weights of |e|^2, where the error of x0 is -sigma e and that of eps is alpha e, times E e^2; in the order of WEIGHTS."""
    a, s, a_slope, s_slope = process.alpha(t), process.sigma(t), derivative(process.alpha, t), derivative(process.sigma, t)
    weights = jnp.stack([a**2, s**2, (a**2 + s**2) ** 2, (a * s_slope - s * a_slope) ** 2, a**2 + s**2 / 0.25])
    return weights * STD**2 / (a**2 * STD**2 + s**2)


@jax.jit
def all_losses(process, x0, eps, t, shift):
    """[weighting, type, B] of networks that stand for one denoiser, the exact one with x0 shifted; and slopes in the shift."""
    x = add_noise(process, x0, eps, t)
    exact = denoiser(gaussian([MEAN], [[STD**2]]), process)(x, t)

    def losses(shift):
        moved = exact.x0 + shift * jnp.sin(x)
        noise = exact.eps - (process.alpha(t) / process.sigma(t))[:, None] * (moved - exact.x0)

        def loss(prediction, weighting):
            def network(shown, time):
                chex.assert_trees_all_equal_shapes((shown, time), (x, t))
                return prediction.target(process, moved, noise, t)

            return denoising_loss(network, process, prediction, weighting, x0, eps, t)

        return jnp.stack([jnp.stack([loss(prediction, weighting) for prediction in ALL.values()]) for weighting in WEIGHTS])

    return jax.jvp(losses, (shift,), (1.0,))


def test_losses_of_every_weighting_and_type(process, times):
    """The exact denoiser's is the weighted E e^2 = v / (alpha^2 v + sigma^2), v = std^2: its error is linear in x_0 and eps, so
    mean +- std and +-1 stand for the Gaussians. Of any denoiser, all types have one loss and one gradient. Up to alpha = 0."""
    shape = (4, len(times))
    x0 = np.broadcast_to(MEAN + STD * np.array([[1], [-1], [1], [-1]]), shape).reshape(-1, 1)
    eps = np.broadcast_to(np.array([[1.0], [1], [-1], [-1]]), shape).reshape(-1, 1)
    t = np.broadcast_to(times, shape).ravel()
    exact, inexact = (jax.tree.map(np.asarray, all_losses(process, x0, eps, t, shift)) for shift in (0.0, 0.2))
    to_zero = process.alpha(process.t_max) == 0
    usable = np.array([not (to_zero and prediction.needs_alpha) for prediction in ALL.values()])
    found = exact[0][:, usable].reshape(len(WEIGHTS), -1, *shape).mean(2)
    expected = np.broadcast_to(np.asarray(least_losses(process, times))[:, None], found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)
    for found in inexact:
        assert (found[:, 1] != 0).any()
        of_x0 = np.broadcast_to(found[:, 1:2], found[:, usable].shape)
        np.testing.assert_allclose(found[:, usable], of_x0, rtol=1e-7, atol=1e-12)


def test_no_weighting_is_left_out():
    assert len(WEIGHTS) == len(WEIGHTINGS) and list(ALL)[1] == "x0"


def test_the_loss_is_a_mean_over_elements():
    """So images of any size weigh alike. One loss per example; the network sees the noised x and the time that it knows."""
    process, t = PROCESSES["linear"](), jnp.array([0.5, 1.0])
    x0, eps = jnp.ones((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 0.5)

    def network(x, time):
        chex.assert_trees_all_close(time, jnp.array([499.0, 999.0]))
        return x

    losses = denoising_loss(network, process, ALL["x0"], WEIGHTINGS["x0"](), x0, eps, t)
    x = process.alpha(t) + 0.5 * process.sigma(t)
    chex.assert_trees_all_close(losses, (1 - x) ** 2, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ times


def keys(count):
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(count))


def test_uniform_times_are_each_table_entry_alike():
    """200,000 draws on 10 steps: counts within 5 standard deviations; every t on the grid n/T, n = 1..T."""
    n = 10 * np.asarray(uniform(PROCESSES["linear"](steps=10), keys(200_000)))
    np.testing.assert_allclose(n, np.rint(n), atol=1e-5)
    counts = np.bincount(np.rint(n).astype(int), minlength=11)
    assert counts[0] == 0 and len(counts) == 11
    assert np.abs(counts[1:] - 20_000).max() < 5 * np.sqrt(200_000 * 0.1 * 0.9)


@pytest.mark.parametrize("name, t_min", [("vp", None), ("vp", 0.3), ("rectified_flow", None), ("edm", None)])
def test_uniform_times_are_uniform(name, t_min):
    process = PROCESSES[name]()
    low = process.t_min.training if t_min is None else t_min
    t = uniform(process, keys(10_000), t_min=t_min)
    assert (low <= t).all() and (t <= process.t_max).all()
    assert kstest(t, flat(low, process.t_max - low).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["edm", "vp", "sub_vp", "rectified_flow"])
@pytest.mark.parametrize("knobs", [{}, {"mean": 0.4, "std": 0.8}])
def test_log_normal_times_are_log_normal(name, knobs):
    """log(sigma / alpha) is N(-1.2, 1.2^2), or as asked."""
    process = PROCESSES[name]()
    t = log_normal(process, keys(10_000), **knobs)
    law = norm(knobs.get("mean", -1.2), knobs.get("std", 1.2))
    assert kstest(np.log(process.sigma(t) / process.alpha(t)), law.cdf).pvalue > 1e-3


def test_log_normal_times_stay_in_the_span():
    process = PROCESSES["edm"](sigma_min=0.1, sigma_max=1.0)
    t = log_normal(process, keys(1000))
    assert t.min() == jnp.float32(0.1) and t.max() == 1 and 0.1 < jnp.median(t) < 1


def test_log_normal_times_need_continuous_time():
    with pytest.raises(ValueError, match="log_normal times are continuous.*use uniform"):
        log_normal(PROCESSES["ncsn"](), keys(2))


@pytest.mark.parametrize("name, process", [("uniform", "linear"), ("uniform", "vp"), ("log_normal", "edm")])
def test_a_time_depends_on_its_key_alone(name, process):
    process = PROCESSES[process]()
    together = TIMES[name](process, keys(5))
    chex.assert_trees_all_close(TIMES[name](process, keys(5)[3:4])[0], together[3], rtol=1e-6)
    assert len(set(together.tolist())) == 5
