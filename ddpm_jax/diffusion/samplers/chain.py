"""Samplers that follow the reverse chain q(x_s | x_t, x_0)."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.posterior import VARIANCES, posterior_mean
from ddpm_jax.diffusion.predictions import add_score
from ddpm_jax.diffusion.process import one_minus_snr_ratio, root
from ddpm_jax.diffusion.samplers.core import Sampler, no_memory


def _ancestral_step(variance, denoise, process, x, memory, at):
    prediction = denoise(x, at.t)
    variance = variance(process, at.t, at.s, prediction.variance_output)
    if prediction.shift is None:
        mean = posterior_mean(process, x, prediction.x0, at.t, at.s)
    else:
        plain = add_score(process, at.t, prediction, -prediction.shift)
        mean = posterior_mean(process, x, plain.x0, at.t, at.s) + variance * prediction.shift
    return mean + jnp.sqrt(variance) * at.noise(0), mean, memory


def ancestral(*, variance: str = "fixed_large") -> Sampler:
    """x_s ~ N(E[x_s | x_t, x0_hat], variance I) (Ho et al. 2020, algorithm 2), for any pair of times.

    A prediction with a `shift` moves the mean by variance * shift in place of x0_hat (Dhariwal & Nichol 2021, algorithm 1).
    variance: fixed_small, fixed_large, learned or learned_range, of `posterior`; ValueError for another. Bias: mean and
    covariance of the samples are off by the first power of the step in log-SNR; small leaves too little variance, large too
    much. Evaluations per step: 1.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, found {variance!r}")
    return Sampler(Partial(no_memory), Partial(_ancestral_step, Partial(VARIANCES[variance])))


def _with_fresh_noise(process, prediction, at, fresh):
    """The step to alpha_s x0_hat with noise of deviation sigma_s, the share `fresh` of the deviation drawn anew."""
    sigma = process.sigma(at.s)
    mean = process.alpha(at.s) * prediction.x0 + sigma * root(1 - fresh**2) * prediction.eps
    return mean + sigma * fresh * at.noise(0), mean


def _ddim_step(eta, denoise, process, x, memory, at):
    share = jnp.maximum(one_minus_snr_ratio(process, at.t, at.s), 0.0)  # negative where time runs up, without noise
    return *_with_fresh_noise(process, denoise(x, at.t), at, eta * root(share)), memory


def ddim(*, eta: float = 0.0) -> Sampler:
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,  c^2 = eta^2 sigma_s^2 (1 - SNR_t / SNR_s).

    Song et al. 2021 (DDIM), eq. 12 and 16. eta = 0 is deterministic, and Euler's method for x / alpha in sigma / alpha; eta = 1
    is the ancestral step with the small variance. eta in [0, 1], may be traced; ValueError for another where it is concrete.
    Order 1, and of a bias of the first power of the step for eta > 0. Evaluations per step: 1.
    """
    if not isinstance(eta, jax.core.Tracer) and not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, found {eta}")
    eta = jnp.asarray(eta, float)
    return Sampler(Partial(no_memory), Partial(_ddim_step, eta), noise_free=eta == 0)


def euler_ancestral(*, eta: float = 1.0) -> Sampler:
    """`ddim`, by default with eta = 1: Euler's method for x / alpha in z = sigma / alpha down to z_down, and noise up to z_s.

    z_up = eta z_s sqrt(1 - z_s^2 / z_t^2), z_down^2 = z_s^2 - z_up^2 (Crowson, k-diffusion, sample_euler_ancestral).
    """
    return ddim(eta=eta)


def _generalized_ddim_step(noise_scale, denoise, process, x, memory, at):
    log_ratio = process.log_snr(at.t) - process.log_snr(at.s)
    ends = jnp.isinf(log_ratio)  # of a step to sigma = 0 or from alpha = 0
    log_ratio = jnp.where(ends, -1e6, jnp.minimum(log_ratio, 0.0))
    return *_with_fresh_noise(process, denoise(x, at.t), at, root(-jnp.expm1(noise_scale**2 * log_ratio))), memory


def generalized_ddim(*, noise_scale: float = 1.0) -> Sampler:
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,  c^2 = sigma_s^2 (1 - (SNR_t / SNR_s)^(lambda^2)).

    gDDIM (Zhang et al. 2023, eq. 13) where noise is the same for all elements; lambda = noise_scale. It is exact for the
    reverse SDE whose noise is lambda times that of equation (6) of `process`, were x0_hat the data. lambda = 0 and 1 are `ddim`
    with eta = 0 and 1. Bias: first power of the step. Evaluations per step: 1.
    """
    noise_scale = jnp.asarray(noise_scale, float)
    return Sampler(Partial(no_memory), Partial(_generalized_ddim_step, noise_scale), noise_free=noise_scale == 0)


def _adjusted_ddim_step(variance_scale, denoise, process, x, memory, at):
    prediction = denoise(x, at.t)
    alpha, sigma = process.alpha(at.s), process.sigma(at.s)
    of_x0 = alpha - process.alpha(at.t) * sigma / process.sigma(at.t)
    variance = of_x0**2 * variance_scale / (2 + (process.alpha(at.t) / process.sigma(at.t)) ** 2)
    size = jnp.square(prediction.eps).mean(range(1, x.ndim), keepdims=True)
    x = alpha * prediction.x0 + jnp.sqrt(sigma**2 + variance / jnp.where(size == 0, 1.0, size)) * prediction.eps
    return x, x, memory


def adjusted_ddim(*, variance_scale: float = 0.1) -> Sampler:
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 + (d / |eps_hat|^2) v) eps_hat, v = (alpha_s - alpha_t sigma_s / sigma_t)^2 v_x.

    aDDIM (Heek et al. 2024, section 3.2): `ddim`, of d elements, made longer by the variance v that x_s lacks since x0_hat is a
    mean. That of x_0 given x_t is taken as v_x = variance_scale / (2 + SNR_t), with 0.1 for images. variance_scale = 0 is
    `ddim`. Order 1. Evaluations per step: 1.
    """
    return Sampler(Partial(no_memory), Partial(_adjusted_ddim_step, jnp.asarray(variance_scale, float)), noise_free=True)
