"""The Gaussian posterior q(x_s | x_t, x_0), s < t, and the variances used for the reverse step in its place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.processes import Process, expand, one_minus_snr_ratio


def posterior_mean(process: Process, x: jax.Array, x0: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """E[x_s | x_t, x_0] = a (sigma_s / sigma_t)^2 x_t + alpha_s (1 - SNR_t / SNR_s) x_0,  a = alpha_t / alpha_s.

    x, x0: [B, ...]; t, s: [] or [B]. Ho et al. 2020, eq. 7, for any process and any pair s < t; s = 0 gives x_0.
    """
    a = jnp.exp(process.log_alpha(t) - process.log_alpha(s))
    of_x = a * (process.sigma(s) / process.sigma(t)) ** 2
    of_x0 = process.alpha(s) * one_minus_snr_ratio(process, t, s)
    return expand(of_x, x) * x + expand(of_x0, x) * x0


def small_variance(process: Process, t: jax.Array, s: jax.Array) -> jax.Array:
    """sigma_s^2 (1 - SNR_t / SNR_s): the variance of q(x_s | x_t, x_0); right where x_0 is a single point."""
    return process.sigma(s) ** 2 * one_minus_snr_ratio(process, t, s)


def large_variance(process: Process, t: jax.Array, s: jax.Array) -> jax.Array:
    """sigma_t^2 (1 - SNR_t / SNR_s): the variance of q(x_t | x_s), beta_n on a full chain; right where x_0 ~ N(0, I)."""
    return process.sigma(t) ** 2 * one_minus_snr_ratio(process, t, s)


VARIANCES: dict[str, Callable] = {"small": small_variance, "large": large_variance}
