import chex
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.betas import linear as linear_betas
from ddpm_jax.diffusion.posterior import large_variance, posterior_mean, small_variance
from ddpm_jax.diffusion.processes import from_betas, linear

PROCESS = linear()


@pytest.mark.parametrize("t, s", [(1.0, 0.999), (0.5, 0.499), (0.002, 0.001), (1.0, 0.02), (0.7, 0.1)])
def test_posterior_is_bayes(t, s):
    """The product of the densities q(x_s | x_0) and q(x_t | x_s) in x_s, by adding precisions, in float64."""
    betas = linear_betas(1000)
    log_alpha = np.concatenate([[0], 0.5 * np.cumsum(np.log1p(-betas))])
    at, as_ = np.exp(log_alpha[round(1000 * t)]), np.exp(log_alpha[round(1000 * s)])
    variance_s = 1 - as_**2
    a = at / as_
    variance_step = (1 - at**2) - a**2 * variance_s
    x_t, x_0 = 0.7, -0.4
    precision = 1 / variance_s + a**2 / variance_step
    mean = (as_ * x_0 / variance_s + a * x_t / variance_step) / precision

    t, s = jnp.float32(t), jnp.float32(s)
    chex.assert_trees_all_close(
        posterior_mean(PROCESS, jnp.array([x_t]), jnp.array([x_0]), t, s), np.float32([mean]), rtol=2e-3
    )
    chex.assert_trees_all_close(small_variance(PROCESS, t, s), np.float32(1 / precision), rtol=2e-3)
    chex.assert_trees_all_close(large_variance(PROCESS, t, s), np.float32(variance_step), rtol=2e-3)


def test_step_to_time_zero_gives_x0():
    x, x0 = jnp.array([[0.3, -2.0]]), jnp.array([[0.5, 0.1]])
    chex.assert_trees_all_equal(posterior_mean(PROCESS, x, x0, 0.001, 0.0), x0)
    assert small_variance(PROCESS, jnp.float32(0.001), jnp.float32(0.0)) == 0


def test_zero_terminal_snr():
    """alpha_T = 0: x_T says nothing of x_0, so the step from it is q(x_s | x_0)."""
    process = from_betas(np.append(linear_betas(1000)[:-1], 1.0))
    s = jnp.float32(0.9)
    x, x0 = jnp.array([5.0]), jnp.array([0.5])
    chex.assert_trees_all_close(posterior_mean(process, x, x0, jnp.float32(1), s), process.alpha(s) * x0)
    chex.assert_trees_all_close(small_variance(process, jnp.float32(1), s), process.sigma(s) ** 2)
