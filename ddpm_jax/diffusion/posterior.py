"""The Gaussian posterior q(x_s | x_t, x_0), s < t, and the variances used for the reverse step in its place.

A variance belongs to the pair (t, s): variance(process, t, s, output), where output is the network's second one,
`Prediction.variance_output`, at which the fixed ones do not look. So samplers and the variational bound use one function.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.process import Process, check_times, expand, one_minus_snr_ratio


def posterior_mean(process: Process, x: jax.Array, x0: jax.Array, t: jax.Array, s: jax.Array) -> jax.Array:
    """E[x_s | x_t, x_0], equation (4) of `process`. x, x0: [B, ...]; t, s: [] or [B]; s <= t. s = 0 on a table gives x_0.

    Ho et al. 2020, eq. 7, for any process and pair.
    """
    check_times(process, t=t, s=s)
    a = jnp.exp(process.log_alpha(t) - process.log_alpha(s))
    of_x = a * (process.sigma(s) / process.sigma(t)) ** 2
    of_x0 = process.alpha(s) * one_minus_snr_ratio(process, t, s)
    return expand(of_x, x) * x + expand(of_x0, x) * x0


def small_variance(process: Process, t: jax.Array, s: jax.Array, output: jax.Array | None = None) -> jax.Array:  # noqa: ARG001
    """sigma_s^2 (1 - SNR_t / SNR_s): the variance of q(x_s | x_t, x_0); right where x_0 is a single point."""
    check_times(process, t=t, s=s)
    return process.sigma(s) ** 2 * one_minus_snr_ratio(process, t, s)


def large_variance(process: Process, t: jax.Array, s: jax.Array, output: jax.Array | None = None) -> jax.Array:  # noqa: ARG001
    """sigma_t^2 (1 - SNR_t / SNR_s): the variance of q(x_t | x_s), beta_n on a full chain.

    Right where x_0 ~ N(0, I) and alpha^2 + sigma^2 = 1; elsewhere x_0 ~ N(0, I) wants (alpha_s^2 + sigma_s^2) / (alpha_t^2 +
    sigma_t^2) times as much.
    """
    check_times(process, t=t, s=s)
    return process.sigma(t) ** 2 * one_minus_snr_ratio(process, t, s)


def clipped_small_variance(process: Process, t: jax.Array, s: jax.Array, output: jax.Array | None = None) -> jax.Array:  # noqa: ARG001
    """`small_variance`, but where sigma_s = 0 that of the next pair up, (2t - s, t), so that it has a logarithm.

    On the full chain the posterior variance "clipped at the first step" of Ho et al. 2020 and Nichol & Dhariwal 2021. t at most
    t_max / 2 there.
    """
    first = process.sigma(s) == 0
    return small_variance(process, jnp.where(first, 2 * t - s, t), jnp.where(first, t, s))


def clipped_large_variance(process: Process, t: jax.Array, s: jax.Array, output: jax.Array | None = None) -> jax.Array:  # noqa: ARG001
    """`large_variance`, but where sigma_s = 0 `clipped_small_variance`: "fixed large" of Ho et al. 2020's code."""
    return jnp.where(process.sigma(s) == 0, clipped_small_variance(process, t, s), large_variance(process, t, s))


def learned_variance(process: Process, t: jax.Array, s: jax.Array, output: jax.Array) -> jax.Array:
    """exp(output): it is the log-variance (Nichol & Dhariwal 2021, code) of the chain that it was trained on, of no other."""
    check_times(process, t=t, s=s)
    return jnp.exp(_checked(output))


def learned_range_variance(process: Process, t: jax.Array, s: jax.Array, output: jax.Array) -> jax.Array:
    """exp(u log large + (1 - u) log small), u = (output + 1) / 2 (Nichol & Dhariwal 2021, eq. 15); small is clipped, above."""
    u = (_checked(output) + 1) / 2
    large, small = large_variance(process, t, s), clipped_small_variance(process, t, s)
    return jnp.exp(u * expand(jnp.log(large), output) + (1 - u) * expand(jnp.log(small), output))


def _checked(output):
    if output is None:
        raise ValueError("a learned variance needs a network with a second output, and this one has none: use small or large")
    return output


FIXED_VARIANCES: dict[str, Callable] = {"fixed_small": small_variance, "fixed_large": large_variance}
VARIANCES: dict[str, Callable] = FIXED_VARIANCES | {"learned": learned_variance, "learned_range": learned_range_variance}
