"""The bound's terms against quadrature and closed forms, and the whole bound against the exact density."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.bound import BOUND_VARIANCES, bins, bits, bound_term, density, last_term
from ddpm_jax.diffusion.grids import log_snr
from ddpm_jax.diffusion.posterior import clipped_small_variance, large_variance, small_variance
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.process import add_noise, prior_kl
from ddpm_jax.diffusion.processes import PROCESSES, vp

VALUES = np.arange(256, dtype=np.float32) / 127.5 - 1
compiled = jax.jit(bound_term, static_argnames=("variance", "decoder"))
MEANS = np.array([-3.0, -1.01, -1.0, -0.999, -0.37, 0.0, 1e-3, 0.5, 1.0, 1.004, 4.0], np.float32)
DEVIATIONS = np.array([1e-3, 5e-3, 0.01, 0.1, 1.0, 10.0], np.float32)


def test_the_256_bins_sum_to_1():
    """In float32, for means in and out of [-1, 1] and deviations from far below a bin to far above all of them."""
    found = bins(VALUES[:, None, None], MEANS[:, None], 2 * jnp.log(DEVIATIONS))
    np.testing.assert_allclose(np.exp(np.asarray(found, float)).sum(0), 1, atol=1e-4)


def test_bins_against_scipy():
    """In float32 against logarithms of differences in float64 where these have digits; finite with finite slopes everywhere."""
    x0, mean, deviation = (a.ravel() for a in np.meshgrid(VALUES[[0, 1, 17, 128, 254, 255]], MEANS, DEVIATIONS))
    found = np.asarray(bins(x0, mean, 2 * jnp.log(deviation)))
    k = np.rint((x0.astype(float) + 1) * 127.5)
    low = np.where(k == 0, -np.inf, ((2 * k - 1) / 255 - 1 - mean) / deviation)
    high = np.where(k == 255, np.inf, ((2 * k + 1) / 255 - 1 - mean) / deviation)
    mass = np.where(low > 0, norm.sf(low) - norm.sf(high), norm.cdf(high) - norm.cdf(low))
    told = mass > 1e-280
    np.testing.assert_allclose(found[told], np.log(mass[told]), rtol=1e-4, atol=1e-4)
    assert (found[~told] < -500).all()
    slopes = jax.grad(lambda mean, deviation: bins(x0, mean, 2 * jnp.log(deviation)).sum(), (0, 1))(mean, deviation)
    assert np.isfinite(found).all() and all(np.isfinite(slope).all() for slope in slopes)


def test_published_bins_are_guided_diffusions():
    """`discretized_gaussian_log_likelihood`, line by line in NumPy; near the exact ones, but for masses below 1e-12."""

    def cdf(x):
        return 0.5 * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * np.power(x, 3))))

    x0, mean, deviation = (a.ravel() for a in np.meshgrid(VALUES[[0, 1, 17, 128, 254, 255]], MEANS, DEVIATIONS[1:]))
    centered, inverse_std = x0.astype(float) - mean, 1 / deviation.astype(float)
    plus, minus = cdf(inverse_std * (centered + 1.0 / 255.0)), cdf(inverse_std * (centered - 1.0 / 255.0))
    inner = np.where(x0 > 0.999, np.log(np.maximum(1 - minus, 1e-12)), np.log(np.maximum(plus - minus, 1e-12)))
    expected = np.where(x0 < -0.999, np.log(np.maximum(plus, 1e-12)), inner)
    told = expected > np.log(1e-4)
    found = np.asarray(bins(x0, mean, 2 * np.log(deviation), published=True))
    np.testing.assert_allclose(found[told], expected[told], rtol=1e-2, atol=1e-3)
    exact = np.asarray(bins(x0, mean, 2 * np.log(deviation)))
    assert np.abs(found - exact)[told].max() < 0.5 and (found >= np.log(1e-12) - 1e-3).all()


def test_density_is_the_normal_one():
    x, mean, deviation = np.array([0.3, -1.0]), np.array([0.1, 2.0]), np.array([0.2, 3.0])
    chex.assert_trees_all_close(density(x, mean, 2 * np.log(deviation)), norm(mean, deviation).logpdf(x).astype("f"), rtol=1e-5)


def kl(mean, variance, other_mean, other_variance):
    """KL of two normal distributions by quadrature."""
    p, q = norm(mean, variance**0.5), norm(other_mean, other_variance**0.5)
    ends = mean - 12 * variance**0.5, mean + 12 * variance**0.5
    return integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), *ends, epsabs=1e-12, limit=200)[0]


@pytest.mark.parametrize("name", ["linear", "rectified_flow", "ve"])
def test_the_kl_against_quadrature(name, x64):  # noqa: ARG001
    """Of the posterior, made of alpha and sigma here by Bayes, and each of the variances; two elements, two pairs at once."""
    process, t, s = PROCESSES[name](), jnp.array([0.5, 0.9]), jnp.array([0.3, 0.2])
    x, x0, guess = (jnp.array(a) for a in ([[0.4, -1.0], [2.0, 0.1]], [[0.9, -0.5], [0.0, 1.0]], [[0.7, -0.4], [0.3, 0.2]]))
    raw = jnp.array([[-1.5, 0.3], [0.9, -0.2]])
    at, st, as_, ss = (np.asarray(f(time)) for time in (t, s) for f in (process.alpha, process.sigma))
    step = st**2 - (at / as_) ** 2 * ss**2
    precision = 1 / ss**2 + (at / as_) ** 2 / step
    means = [(as_[:, None] * v / ss[:, None] ** 2 + (at / as_ / step)[:, None] * x) / precision[:, None] for v in (x0, guess)]
    large, small = np.log(step)[:, None], -np.log(precision)[:, None]
    share = (np.asarray(raw) + 1) / 2
    expected = {
        "fixed_small": np.exp(small) + 0 * share,
        "fixed_large": np.exp(large) + 0 * share,
        "learned": np.exp(raw),
        "learned_range": np.exp(share * large + (1 - share) * small),
    }
    prediction = Prediction(guess, guess, variance_output=raw)
    for kind, variance in BOUND_VARIANCES.items():
        found = compiled(process, x0, prediction, t, s, variance)
        each = [[kl(means[0][i, j], 1 / precision[i], means[1][i, j], expected[kind][i, j]) for j in (0, 1)] for i in (0, 1)]
        chex.assert_trees_all_close(found, np.sum(each, 1), rtol=1e-6)


@pytest.mark.parametrize("name", ["linear", "cosine", "vp", "edm", "rectified_flow"])
def test_the_term_of_the_true_point_is_0(name):
    """Where x0_hat = x_0 and v is the posterior's variance, in float32, exactly."""
    process = PROCESSES[name]()
    x0 = jnp.array([[0.3, -0.8], [0.1, 1.0]])
    t, s = process.t_max * jnp.array([0.05, 1.0]), process.t_max * jnp.array([0.04, 0.999])
    assert (compiled(process, x0, Prediction(x0, x0), t, s, BOUND_VARIANCES["fixed_small"]) == 0).all()
    assert (compiled(process, x0, Prediction(x0 + 0.1, x0), t, s, BOUND_VARIANCES["fixed_small"]) > 0).all()


@pytest.mark.thorough
def test_the_first_step_of_a_table_is_the_decoder():
    """Mixed with pairs that are not. Fixed variances are the clipped one there; slopes in x0_hat and raw are finite."""
    process, steps = PROCESSES["cosine"](), 1000
    n = jnp.array([1, 2, 1000])
    t, s = n / steps, (n - 1) / steps
    x0, raw = jnp.array(VALUES[[[0, 7], [100, 255], [3, 4]]]), jnp.full((3, 2), 0.4)
    guess = jnp.array([[0.1, 0.1], [0.1, 0.1], [1e17, -1e17]])  # at alpha = 1e-5 and less, what an eps prediction can give

    @partial(jax.jit, static_argnums=0)
    def of(variance, guess, raw):
        def terms(guess, raw):
            return bound_term(process, x0, Prediction(guess, guess, variance_output=raw), t, s, variance)

        return terms(guess, raw), jax.grad(lambda *both: terms(*both).sum(), (0, 1))(guess, raw)

    clipped = clipped_small_variance(process, t[0], s[0])
    learned = large_variance(process, t[0], s[0]) ** 0.7 * clipped**0.3
    for kind in ("fixed_large", "learned_range"):
        variance = BOUND_VARIANCES[kind]
        terms, slopes = of(variance, guess, raw)
        v = learned if kind == "learned_range" else clipped
        chex.assert_trees_all_close(terms[0], -bins(x0[0], guess[0], jnp.log(v)).sum(), rtol=1e-4)
        for i in (1, 2):
            alone = compiled(process, x0, Prediction(guess, guess, variance_output=raw), t[i], s[i], variance)
            chex.assert_trees_all_close(terms[i], alone[i], rtol=1e-5)
        assert all(jnp.isfinite(slope).all() for slope in slopes)
        assert (slopes[1] != 0).all() == (kind == "learned_range")
    chex.assert_trees_all_close(clipped, small_variance(process, t[1], s[1]), rtol=1e-6)


def test_the_last_term_is_the_noise_read_backwards():
    process = PROCESSES["rectified_flow"]()
    x0, x, t = jnp.array([[0.5, -0.2]]), jnp.array([[0.2, 0.1]]), 0.3
    expected = -norm(np.asarray(x) / 0.7, 0.3 / 0.7).logpdf(x0).sum()
    chex.assert_trees_all_close(last_term(process, x0, x, t, density), np.float32([expected]), rtol=1e-5)
    of_bins = last_term(process, jnp.array(VALUES)[:, None], jnp.full((256, 1), 0.2), jnp.full(256, t))
    chex.assert_trees_all_close(jnp.exp(-of_bins).sum(), 1.0, atol=1e-5)


def test_the_bound_reaches_the_density_at_the_rate_1_over_t(x64):  # noqa: ARG001
    """With the optimal denoiser and the small variance, times uniform in log-SNR from 16 to -9; the average over x_0.

    For a Gaussian all terms are quadratic in x_0 and eps, so mean +- std and +-1 stand for them. Once the 1 / T is extrapolated
    away, what is left is O(1 / T^2), and what the prior and the decoder lack.
    """
    mean, std = 0.3, 0.5
    process, data = vp(), oracle.gaussian([mean], [[std**2]])
    denoise = oracle.denoiser(data, process)
    x0, eps = mean + std * jnp.array([[1.0], [1], [-1], [-1]]), jnp.array([[1.0], [-1], [1], [-1]])

    def terms(t, s):
        x = add_noise(process, x0, eps, t)
        return bound_term(process, x0, denoise(x, t), t, s, BOUND_VARIANCES["fixed_small"], density).mean()

    @partial(jax.jit, static_argnums=0)
    def bound(steps):
        times = log_snr(process, steps=steps + 1, t_min=process.inverse_log_snr(jnp.asarray(16.0)))
        last = last_term(process, x0, add_noise(process, x0, eps, times[-1]), times[-1], density).mean()
        return prior_kl(process, x0).mean() + jax.vmap(terms)(times[:-1], times[1:]).sum() + last

    entropy = 0.5 * np.log(2 * np.pi * np.e * std**2)
    gaps = np.array([float(bound(steps)) - entropy for steps in (400, 800, 1600)])
    np.testing.assert_allclose(gaps[:-1] / gaps[1:], 2, rtol=0.05)
    assert (gaps > 0.05).all() and abs(2 * gaps[2] - gaps[1]) < 1e-3


def test_bits_per_dimension():
    """A uniform choice among 256 values is 8 bits in each."""
    chex.assert_trees_all_close(bits(jnp.array([12 * jnp.log(256.0)]), (2, 2, 3)), jnp.array([8.0]), rtol=1e-6)
