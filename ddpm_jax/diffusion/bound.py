"""The terms of the variational bound -log p(x_0) <= L_T + sum of L over the pairs (t, s) of a chain + the decoder's term.

L_T is `process.prior_kl`. Sohl-Dickstein et al. 2015, eq. 14; Ho et al. 2020, eq. 5. All terms are in nats, per example, summed
over its elements; `bits` converts them.

A decoder(x0, mean, log_variance) -> log p(x_0 | x_t), elementwise, broadcasts its arguments.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from ddpm_jax.diffusion.posterior import (
    clipped_large_variance,
    clipped_small_variance,
    learned_range_variance,
    learned_variance,
    small_variance,
)
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.process import Process, check_times, expand, one_minus_snr_ratio

# Positive at every pair. At the first step of the chain both fixed ones are the clipped small one, as in Ho et al.'s code.
BOUND_VARIANCES: dict[str, Callable] = {
    "fixed_small": clipped_small_variance,
    "fixed_large": clipped_large_variance,
    "learned": learned_variance,
    "learned_range": learned_range_variance,
}


def bits(nats: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Nats per example of this shape, without the batch axis, as bits per dimension."""
    return nats / (math.prod(shape) * math.log(2))


def bins(x0: jax.Array, mean: jax.Array, log_variance: jax.Array, *, published: bool = False) -> jax.Array:
    """The Gaussian's mass on the bin of x0, of the 256 around k/127.5 - 1, the end bins open (Ho et al. 2020, eq. 13).

    Phi(b) - Phi(a), taken in the lower tail and in logarithms: log Phi(b) + log(1 - Phi(a) / Phi(b)), with the exact Phi.
    published: as in the code of Ho et al. and guided-diffusion, which have (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 for
    Phi, and 1e-12 for a mass that is less.
    """
    scale, half, far = jnp.exp(-0.5 * log_variance), 1 / 255, 1e10  # far: in deviations, and finite for the slopes' sake
    if published:
        below, above = (_phi((x0 + shift - mean) * scale) for shift in (-half, half))
        return jnp.log(jnp.maximum(jnp.where(x0 > 0.999, 1.0, above) - jnp.where(x0 < -0.999, 0.0, below), 1e-12))
    below = jnp.where(x0 < -0.999, -far, (x0 - half - mean) * scale)
    above = jnp.where(x0 > 0.999, far, (x0 + half - mean) * scale)
    upper = below + above > 0
    log_low, log_high = log_ndtr(jnp.where(upper, -above, below)), log_ndtr(jnp.where(upper, -below, above))
    return log_high + jax.nn.log1mexp(log_high - log_low)


def _phi(x):
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def density(x0: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """The Gaussian's density at x0, for data that are not of 256 values."""
    return -0.5 * (jnp.square(x0 - mean) * jnp.exp(-log_variance) + log_variance + jnp.log(2 * jnp.pi))


def bound_term(
    process: Process,
    x0: jax.Array,
    prediction: Prediction,
    t: jax.Array,
    s: jax.Array,
    variance: Callable,
    decoder: Callable = bins,
) -> jax.Array:
    """KL(q(x_s | x_t, x_0) || N(E[x_s | x_t, x0_hat], v)); where sigma_s = 0, -log p(x_0 | x_t) of the decoder N(x0_hat, v).

    x0 and the prediction at (x_t, t): [B, ...]; t, s: [] or [B], s < t, of either kind. variance(process, t, s, output) -> v,
    one of `BOUND_VARIANCES`. Returns [B]. With u the variance of q and r = 1 - SNR_t / SNR_s the KL is the sum over elements of

        1/2 [u / v - 1 - log(u / v) + (alpha_s r (x_0 - x0_hat))^2 / v]
    """
    check_times(process, t=t, s=s)
    at_end = expand(process.sigma(s) == 0, x0)
    log_v = jnp.log(variance(process, t, s, prediction.variance_output))
    log_v = log_v if log_v.ndim == x0.ndim else expand(log_v, x0)  # learned ones differ from element to element
    log_u = jnp.log(jnp.where(at_end, 1.0, expand(small_variance(process, t, s), x0)))
    error = expand(process.alpha(s) * one_minus_snr_ratio(process, t, s), x0) * (x0 - prediction.x0)
    log_ratio = jnp.where(at_end, 0.0, log_u - log_v)
    kl = 0.5 * (jnp.expm1(log_ratio) - log_ratio + jnp.square(error) * jnp.exp(-log_v))
    # Elsewhere the decoder is asked of x0 itself: x0_hat may be huge where alpha is small, and overflow in the slopes.
    decoded = decoder(x0, jnp.where(at_end, prediction.x0, x0), jnp.where(at_end, log_v, 0.0))
    return _sum(jnp.where(at_end, -decoded, kl))


def last_term(process: Process, x0: jax.Array, x: jax.Array, t: jax.Array, decoder: Callable = bins) -> jax.Array:
    """-log p(x_0 | x_t) where the chain ends at a t with sigma_t > 0: the decoder of x_t / alpha, (sigma / alpha)^2.

    For continuous time and `ncsn`, at their lowest t. It asks no network: p(x_0 | x_t) is proportional to q(x_t | x_0), as in
    Kingma et al. 2021 (Variational Diffusion Models), section 3.1, but integrated over each bin, where they take its centre.
    x0, x = x_t: [B, ...]; t: [] or [B]. Returns [B].
    """
    mean, log_variance = x / expand(process.alpha(t), x), expand(-process.log_snr(t), x)
    return _sum(-decoder(x0, mean, log_variance))


def _sum(terms):
    return terms.reshape(len(terms), -1).sum(1)
