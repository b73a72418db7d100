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
    variance = variance(process, at.t, at.s, prediction.raw)
    if prediction.shift is None:
        mean = posterior_mean(process, x, prediction.x0, at.t, at.s)
    else:
        plain = add_score(process, at.t, prediction, -prediction.shift)
        mean = posterior_mean(process, x, plain.x0, at.t, at.s) + variance * prediction.shift
    return mean + jnp.sqrt(variance) * at.noise(0), mean, memory


def ancestral(*, variance: str = "large") -> Sampler:
    """x_s ~ N(E[x_s | x_t, x0_hat], variance I) (Ho et al. 2020, algorithm 2), for any pair of times.

    A prediction with a `shift` moves the mean by variance * shift in place of x0_hat (Dhariwal & Nichol 2021, algorithm 1).
    variance: small, large, learned or learned_range, of `posterior`; ValueError for another. Bias: mean and covariance of the
    samples are off by the first power of the step in log-SNR; small leaves too little variance, large too much. Evaluations per
    step: 1.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, found {variance!r}")
    return Sampler(Partial(no_memory), Partial(_ancestral_step, Partial(VARIANCES[variance])))


def _ddim_step(eta, denoise, process, x, memory, at):
    prediction = denoise(x, at.t)
    sigma = process.sigma(at.s)
    share = jnp.maximum(one_minus_snr_ratio(process, at.t, at.s), 0.0)  # negative where time runs up, without noise
    fresh = eta * root(share)  # of sigma_s, what is drawn anew
    mean = process.alpha(at.s) * prediction.x0 + sigma * root(1 - fresh**2) * prediction.eps
    return mean + sigma * fresh * at.noise(0), mean, memory


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
