"""Samplers against closed forms, on data N(m, v) whose denoiser is exact."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion.betas import linear as linear_betas
from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.oracle import gaussian_denoiser, propagate
from ddpm_jax.diffusion.processes import linear
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import ancestral, ddim

PROCESS = linear()
MEAN, STD = 0.6, 0.3
DENOISE = gaussian_denoiser(PROCESS, MEAN, STD)
LOG_ALPHA = np.concatenate([[0], 0.5 * np.cumsum(np.log1p(-linear_betas(1000)))])


def moments_by_hand(times, eta=None, variance=None):
    """Mean and variance along the chain, by scalar recursion in float64 from the papers' formulas; no code of the package.

    eta: DDIM (Song et al. 2021, eq. 12); variance: DDPM (Ho et al. 2020, eq. 7) with "small" or "large".
    """
    m, v = 0.0, 1.0
    for t, s in zip(times[:-1], times[1:], strict=True):
        abar_t, abar_s = np.exp(2 * LOG_ALPHA[round(1000 * t)]), np.exp(2 * LOG_ALPHA[round(1000 * s)])
        gain = np.sqrt(abar_t) * STD**2 / (abar_t * STD**2 + 1 - abar_t)
        beta = 1 - abar_t / abar_s
        # x0_hat = offset + gain x
        offset = MEAN - gain * np.sqrt(abar_t) * MEAN
        tilde = (1 - abar_s) / (1 - abar_t) * beta
        if eta is None:
            of_x0, of_x = np.sqrt(abar_s) * beta / (1 - abar_t), np.sqrt(1 - beta) * (1 - abar_s) / (1 - abar_t)
            noise = tilde if variance == "small" else beta
        else:
            noise = eta**2 * tilde
            of_x = np.sqrt((1 - abar_s - noise) / (1 - abar_t))
            of_x0 = np.sqrt(abar_s) - of_x * np.sqrt(abar_t)
        slope = of_x + of_x0 * gain
        m, v = slope * m + of_x0 * offset, slope**2 * v + noise
    return m, v


CASES = {
    "ancestral small": (ancestral(variance="small"), dict(variance="small")),
    "ancestral large": (ancestral(variance="large"), dict(variance="large")),
    "ddim 0": (ddim(eta=0.0), dict(eta=0.0)),
    "ddim 0.5": (ddim(eta=0.5), dict(eta=0.5)),
    "ddim 1": (ddim(eta=1.0), dict(eta=1.0)),
}


@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("case", CASES)
def test_exact_moments_of_the_chain(case, steps):
    sampler, arguments = CASES[case]
    times = uniform(PROCESS, steps)
    m, c = jax.jit(propagate)(sampler, DENOISE_PARTIAL, PROCESS, times, jnp.zeros(1), jnp.eye(1))
    expected = moments_by_hand(np.asarray(times), **arguments)
    chex.assert_trees_all_close((m[0], c[0, 0]), tuple(map(np.float32, expected)), rtol=1e-3)


DENOISE_PARTIAL = jax.tree_util.Partial(DENOISE)


@pytest.mark.parametrize("case", CASES)
def test_samples_have_the_exact_moments(case):
    """20,000 samples of 50 steps: mean and variance within 4 standard errors of the propagated ones."""
    sampler, _ = CASES[case]
    times = uniform(PROCESS, 50)
    keys = sample_keys(0, jnp.arange(20_000))
    x, *_ = jax.jit(lambda keys: sample(sampler, DENOISE, PROCESS, times, keys, (1,), last="stop"))(keys)
    m, c = propagate(sampler, DENOISE, PROCESS, times, jnp.zeros(1), jnp.eye(1))
    m, v = float(m[0]), float(c[0, 0])
    assert abs(x.mean() - m) < 4 * np.sqrt(v / len(x))
    assert abs(x.var() - v) < 4 * v * np.sqrt(2 / len(x))


@pytest.mark.parametrize("case", CASES)
def test_full_chain_reaches_the_data(case):
    """With all 1000 steps and an exact denoiser, mean and deviation at t = 1/T are the data's (noised by sigma(1/T) = 0.01)."""
    sampler, _ = CASES[case]
    m, c = propagate(sampler, DENOISE, PROCESS, uniform(PROCESS, 1000), jnp.zeros(1), jnp.eye(1))
    assert abs(m[0] - MEAN) < 5e-3
    assert abs(jnp.sqrt(c[0, 0]) - np.hypot(STD, 0.01)) < 5e-3


def test_ddim_converges_to_the_flow_at_first_order():
    """The probability flow maps (x - alpha m) in proportion to the marginal deviation; halving the steps doubles the error."""

    def marginal_std(t):
        return jnp.sqrt((PROCESS.alpha(t) * STD) ** 2 + PROCESS.sigma(t) ** 2)

    errors = []
    for steps in (126, 251, 501):
        times = jnp.linspace(1.0, 0.2, steps)
        start = jnp.array([[1.5]])
        keys = sample_keys(0, jnp.arange(1))
        x, _, _ = sample(ddim(), DENOISE, PROCESS, times, keys, (1,), x=start, last="stop")
        exact = PROCESS.alpha(0.2) * MEAN + (start - PROCESS.alpha(1.0) * MEAN) * marginal_std(0.2) / marginal_std(1.0)
        errors.append(float(jnp.abs(x - exact)[0, 0]))
    slopes = np.diff(np.log(errors)) / np.diff(np.log([125, 250, 500]))
    assert np.all(np.abs(slopes + 1) < 0.15), (errors, slopes)


def test_ddim_at_eta_one_is_the_ancestral_step():
    keys = sample_keys(3, jnp.arange(8))
    times = uniform(PROCESS, 40)
    a, _, _ = sample(ddim(eta=1.0), DENOISE, PROCESS, times, keys, (2, 2, 1))
    b, _, _ = sample(ancestral(variance="small"), DENOISE, PROCESS, times, keys, (2, 2, 1))
    chex.assert_trees_all_close(a, b, atol=2e-5)


def test_eta_is_traced_and_differentiable_at_zero():
    keys, times = sample_keys(0, jnp.arange(4)), uniform(PROCESS, 20)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def total(eta):
        return sample(ddim(eta=eta), DENOISE, PROCESS, times, keys, (1,), last="stop")[0].sum()

    total(0.0), total(0.7)
    gradient = jax.grad(lambda eta: sample(ddim(eta=eta), DENOISE, PROCESS, times, keys, (1,), last="stop")[0].sum())
    difference = (total(1e-2) - total(0.0)) / 1e-2
    chex.assert_trees_all_close(gradient(0.0), difference, rtol=0.02)
    assert jnp.isfinite(gradient(1.0))
    to_zero = jnp.array([1.0, 0.5, 0.0])
    total = lambda eta: sample(ddim(eta=eta), DENOISE, PROCESS, to_zero, keys, (1,), last="stop").x.sum()  # noqa: E731
    assert jnp.isfinite(jax.grad(total)(1.0))
    with pytest.raises(ValueError, match="eta must be from 0 to 1, found 1.5"):
        ddim(eta=1.5)
