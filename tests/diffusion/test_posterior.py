"""The posterior against Bayes, and the reverse variances against their papers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.betas import BETAS
from ddpm_jax.diffusion.posterior import (
    VARIANCES,
    clipped_large_variance,
    clipped_small_variance,
    large_variance,
    learned_range_variance,
    posterior_mean,
    small_variance,
)
from ddpm_jax.diffusion.process import transition
from ddpm_jax.diffusion.processes import PROCESSES


@jax.jit
def of_pair(process, x, x0, t, s):
    variances = small_variance(process, t, s), large_variance(process, t, s)
    return posterior_mean(process, x, x0, t, s), *variances, *transition(process, t, s)


def test_posterior_is_bayes(process, times):
    """The product of the densities q(x_s | x_0) and q(x_t | x_s) in x_s, by adding precisions; up to alpha_t = 0.

    And q(x_t | x_s) is what takes the marginal at s over into that at t.
    """
    t, s = times[1:], times[:-1]
    at, st, as_, ss = (np.asarray(f(time)) for time in (t, s) for f in (process.alpha, process.sigma))
    x, x0 = np.linspace(-2, 2, len(t)), np.linspace(1, -0.5, len(t))
    a = at / as_
    step = st**2 - a**2 * ss**2
    precision = 1 / ss**2 + a**2 / step
    mean = (as_ * x0 / ss**2 + a * x / step) / precision
    found = of_pair(process, x[:, None], x0[:, None], t, s)
    chex.assert_trees_all_close(found, (mean[:, None], 1 / precision, step, a, step), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "sub_vp", "rectified_flow"])
def test_the_step_to_time_0_gives_x0(name):
    process, x, x0 = PROCESSES[name](), jnp.array([[0.3, -2.0]]), jnp.array([[0.5, 0.1]])
    for t in (0.001, 0.7):
        mean, small, large, a, step = of_pair(process, x, x0, t, 0.0)
        chex.assert_trees_all_equal(mean, x0)
        assert small == 0
        chex.assert_trees_all_close((large, step), (process.sigma(t) ** 2,) * 2, rtol=1e-6)
        chex.assert_trees_all_close(a, process.alpha(t), rtol=1e-6)


def published(name):
    """Fixed large, beta_n, and fixed small, beta_n (1 - alpha_bar_{n-1}) / (1 - alpha_bar_n), for n = 1..T."""
    betas = BETAS[name]()
    alpha_bar = np.cumprod(1 - betas)
    return betas, betas * (1 - np.append(1.0, alpha_bar[:-1])) / (1 - alpha_bar)


@pytest.mark.thorough
@pytest.mark.parametrize("name", BETAS)
def test_variances_on_the_full_chain_are_the_published(name, x64):  # noqa: ARG001
    """Where a logarithm is needed the small one at n = 1, which is 0, gives way to the next. Learned range lies between."""
    betas, variance = published(name)
    log_clipped = np.log(np.append(variance[1], variance[1:]))
    process, t, s = PROCESSES[name](), jnp.arange(1, 1001) / 1000, jnp.arange(1000) / 1000
    chex.assert_trees_all_close(large_variance(process, t, s), betas, rtol=1e-9)
    chex.assert_trees_all_close(small_variance(process, t, s), variance, rtol=1e-9)
    chex.assert_trees_all_close(jnp.log(clipped_small_variance(process, t, s)), log_clipped, rtol=1e-9)
    raw = jnp.broadcast_to(jnp.array([-1.0, 0.0, 1.0]), (1000, 2, 3))
    span = np.stack([log_clipped, (log_clipped + np.log(betas)) / 2, np.log(betas)], -1)
    chex.assert_trees_all_close(
        jnp.log(learned_range_variance(process, t, s, raw)), np.broadcast_to(span[:, None], raw.shape), rtol=1e-9, atol=1e-12
    )


def test_variances_in_float32():
    """Within 1e-3."""
    betas, variance = published("linear")
    process, t, s = PROCESSES["linear"](), np.arange(1, 1001, dtype=np.float32) / 1000, np.arange(1000, dtype=np.float32) / 1000
    chex.assert_trees_all_close(large_variance(process, t, s), np.float32(betas), rtol=1e-3)
    clipped = np.float32(np.append(variance[1], variance[1:]))
    chex.assert_trees_all_close(clipped_small_variance(process, t, s), clipped, rtol=1e-3)
    clipped[1:] = betas[1:]  # "fixed large" has the small one at n = 1
    chex.assert_trees_all_close(clipped_large_variance(process, t, s), clipped, rtol=1e-3)


def test_learned_variance_is_exp():
    raw = jnp.array([[-2.0, 0.0], [1.0, 3.0]])
    chex.assert_trees_all_close(VARIANCES["learned"](PROCESSES["vp"](), 0.5, 0.4, raw), np.exp(raw), rtol=1e-6)


@pytest.mark.parametrize("name", ["learned", "learned_range"])
def test_learned_variances_need_a_second_output(name):
    with pytest.raises(ValueError, match="this one has none: use small or large"):
        VARIANCES[name](PROCESSES["vp"](), 0.5, 0.4, None)


def test_bad_times_are_refused():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="t must lie .*, found 1.2"):
        posterior_mean(PROCESSES["vp"](), x, x, 1.2, 0.1)
    with pytest.raises(ValueError, match="s must lie .*, found -0.1"):
        posterior_mean(PROCESSES["vp"](), x, x, 1.0, -0.1)
    with pytest.raises(ValueError, match="s must not be later than t"):
        posterior_mean(PROCESSES["vp"](), x, x, np.array([0.5, 0.4]), np.array([0.1, 0.6]))
    with pytest.raises(ValueError, match=r"found shape \[3\] for x of \[2, 3\]"):
        posterior_mean(PROCESSES["vp"](), x, x, jnp.full(3, 0.5), jnp.full(3, 0.1))
