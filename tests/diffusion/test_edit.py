"""Interpolation on arcs and images from noised images, on worlds of which the answer is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.edit import img2img, slerp
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import ancestral, ddim

KEYS = sample_keys(0, jnp.arange(5))
IMAGES = np.random.default_rng(0).normal(size=(5, 2))


def world():
    return oracle.mixture([[-0.8, 0.3], [0.6, -0.5]], [0.03 * np.eye(2)] * 2)


def test_slerp_turns_at_a_constant_rate_and_keeps_the_norm(x64):  # noqa: ARG001
    """Rotations of a plane by hand, one per example, each by its own share of its own angle."""
    frame = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 12, 2)))[0].transpose(0, 2, 1).reshape(5, 2, 3, 4)
    angles, radius = np.array([1e-9, 1e-4, 0.5, 1.6, 3.1]), np.array([0.5, 1.0, 2.0, 3.0, 30.0])

    def turned(angle):
        parts = np.cos(angle)[:, None, None] * frame[:, 0] + np.sin(angle)[:, None, None] * frame[:, 1]
        return radius[:, None, None] * parts

    a, b, between = turned(0 * angles), turned(angles), jax.jit(slerp)
    for fraction in (0.0, 0.25, 0.9, 1.0, np.array([0.0, 0.2, 0.5, 0.7, 1.0])):
        chex.assert_trees_all_close(between(a, b, fraction), turned(fraction * angles), rtol=1e-11, atol=1e-11)
    chex.assert_trees_all_equal((between(a, b, 0.0), between(a, b, 1.0)), (a, b))
    chex.assert_trees_all_close(between(a, 3 * a, 0.25), 1.5 * a, rtol=1e-12)  # parallel: the line
    shorter = between(a, 0.5 * b, 0.4)[3]  # of other norms: the formula with the angle between them
    expected = (np.sin(0.6 * angles[3]) * a[3] + 0.5 * np.sin(0.4 * angles[3]) * b[3]) / np.sin(angles[3])
    chex.assert_trees_all_close(shorter, expected, rtol=1e-12)


def test_slerp_has_a_gradient_also_where_nothing_turns():
    a = jnp.ones((2, 3))
    for b in (a, 2 * a, a.at[0, 0].set(-1.0)):
        gradients = jax.grad(lambda a, b, f: slerp(a, b, f).sum(), (0, 1, 2))(a, b, 0.3)
        assert all(jnp.isfinite(gradient).all() for gradient in gradients)


def test_img2img_from_pure_noise_is_sampling_whatever_the_image(x64):  # noqa: ARG001
    """Where alpha = 0 bit for bit the samples of the same keys; on vp, where alpha = 0.0066 at t_max, nearly."""
    for name, options, tolerance in (("linear", {"zero_terminal_snr": True}, 0.0), ("vp", {}, 1e-3)):
        process = PROCESSES[name](**options)
        denoise, times = oracle.denoiser(world(), process), GRIDS["uniform"](process, steps=30)

        @jax.jit
        def both():
            drawn = sample(ddim(eta=0.5), denoise, process, times, KEYS, (2,))  # noqa: B023
            return drawn, img2img(ddim(eta=0.5), denoise, process, times, KEYS, IMAGES, frames=3)  # noqa: B023

        drawn, edited = both()
        chex.assert_trees_all_close(edited.x, drawn.x, rtol=0, atol=tolerance)
        assert edited.evaluations == drawn.evaluations == 30
        chex.assert_shape(edited.frames, (3, 5, 2))


@pytest.mark.thorough
def test_img2img_from_little_noise_returns_the_image(x64):  # noqa: ARG001
    """At time 0 of a table exactly; at the lowest times of a grid up to the little noise there."""
    process = PROCESSES["linear"]()
    denoise = oracle.denoiser(world(), process)
    still = img2img(ancestral(), denoise, process, jnp.array([0.0]), KEYS, IMAGES, last="stop")
    chex.assert_trees_all_equal(still.x, IMAGES)

    @jax.jit
    def near(times):
        data, _ = oracle.draw(world(), process, 0.0, KEYS)
        return jnp.abs(img2img(ancestral(), denoise, process, times, KEYS, data).x - data).max()

    assert 0 < near(jnp.array([3e-3, 2e-3, 1e-3])) < 4 * process.sigma(3e-3)


def test_the_later_the_start_the_less_stays_of_the_image(x64):  # noqa: ARG001
    """The share of 400 images of class 0 that are of class 0 afterwards is the mean of p(0 | x_t) over the noised ones, which
    falls from 1 to 1/2: within 0.1, four standard errors."""
    process, keys = PROCESSES["vp"](), sample_keys(1, jnp.arange(400))
    images = jnp.broadcast_to(world().means[0], (400, 2))

    @jax.jit
    def shares(start):
        times = process.inverse_log_snr(jnp.linspace(start, 7.0, 31))
        denoise = oracle.denoiser(world(), process)
        x = img2img(ancestral(), denoise, process, times, keys, images).x
        noised = img2img(ancestral(), denoise, process, times[:1], keys, images, last="stop").x
        exact = jnp.exp(oracle.class_log_posterior(world(), process, noised, times[0], 2)[:, 0])
        return (x[:, 0] < x[:, 1]).mean(), exact.mean()

    found, exact = np.array([shares(start) for start in (6.0, 0.0, -2.0, -9.0)]).T
    assert (np.abs(found - exact) < 0.1).all() and (np.diff(exact) < -0.03).all(), (found, exact)
    assert exact[0] > 0.999 and abs(exact[-1] - 0.5) < 0.02


@pytest.mark.parametrize("times, words", [([0.2, 0.5], "strictly decreasing"), ([1.5, 0.5], r"t must lie in \[0, t_max = 1\]")])
def test_bad_times_are_refused(times, words):
    process = PROCESSES["vp"]()
    with pytest.raises(ValueError, match=words):
        img2img(ddim(), oracle.denoiser(world(), process), process, jnp.array(times), KEYS, IMAGES)
