"""The probability-flow ODE, equation (7) of `process`, in coordinates in which it is one and the same for every process.

With r = sqrt(alpha^2 + sigma^2), the state w = x / r and the position u = -arcsinh(alpha / sigma),

    dw/du = (sigma / r) v,   v = (alpha eps_hat - sigma x0_hat) / r,                                         (1)

which holds no derivative of alpha or sigma, so tables are as smooth as any. u grows with t, from about log(sigma / 2 alpha)
near the data, where its steps are those of half the log-SNR, to about -alpha / sigma, which is 0 where alpha = 0. So both ends
are finite, given sigma > 0. In w every process is that of Lu & Song 2025 (TrigFlow), at the angle whose sine is 1 / cosh u.
"""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.predictions import Denoiser
from ddpm_jax.diffusion.process import Process, check_times, expand


def position(process: Process, t: jax.Array) -> jax.Array:
    """u(t), for t of any shape with sigma(t) > 0."""
    check_times(process, t=t)
    return -jnp.arcsinh(process.alpha(t) / process.sigma(t))


def time(process: Process, u: jax.Array) -> jax.Array:
    """t of a position of any shape, within [0, t_max] whatever the rounding: by log-SNR = 2 log sinh(-u)."""
    return jnp.clip(process.inverse_log_snr(2 * jnp.log(jnp.sinh(-u))), 0, process.t_max)


def scale(process: Process, t: jax.Array) -> jax.Array:
    """r(t) = x / w, for t of any shape."""
    check_times(process, t=t)
    return jnp.hypot(process.alpha(t), process.sigma(t))


def slope(denoise: Denoiser, process: Process, w: jax.Array, t: jax.Array) -> jax.Array:
    """dw/du of (1). w: [B, ...]; t: [] or [B]. One evaluation of the denoiser."""
    r = scale(process, t)
    prediction = denoise(expand(r, w) * w, t)
    along = expand(process.sigma(t) / r**2, w)
    alpha, sigma = expand(process.alpha(t), w), expand(process.sigma(t), w)
    return along * (alpha * prediction.eps - sigma * prediction.x0)
