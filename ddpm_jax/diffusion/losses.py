"""Weightings of the squared error, and the loss made of one.

A weighting weight(process, t) multiplies |e|^2, the error that all prediction types share (`predictions`), at times drawn from
the time distribution; it contains neither -d log_snr/dt nor the density of t. Each type's error is computed in its own space.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.predictions import PREDICTIONS, PredictionType
from ddpm_jax.diffusion.process import Process, add_noise

Weighting = Callable[[Process, jax.Array], jax.Array]


def simple() -> Weighting:
    """|eps - eps_hat|^2 (Ho et al. 2020, eq. 14)."""
    return PREDICTIONS["eps"]().scale


def x0() -> Weighting:
    """|x0 - x0_hat|^2."""
    return PREDICTIONS["x0"]().scale


def v() -> Weighting:
    """|v - v_hat|^2: "SNR + 1" of the squared x0 error where alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, section 4)."""
    return PREDICTIONS["v"]().scale


def velocity() -> Weighting:
    """|u - u_hat|^2 (Lipman et al. 2023, eq. 9; Liu et al. 2023, eq. 1)."""
    return PREDICTIONS["velocity"]().scale


def edm(*, sigma_data: float = 0.5) -> Weighting:
    """|F - F_hat|^2: where alpha = 1, (sigma^2 + d^2) / (sigma d)^2 |x0 - x0_hat|^2, d = sigma_data (Karras et al. 2022)."""
    return PREDICTIONS["edm"](sigma_data=sigma_data).scale


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {"simple": simple, "x0": x0, "v": v, "velocity": velocity, "edm": edm}


def denoising_loss(
    apply: Callable,
    process: Process,
    prediction: PredictionType,
    weighting: Weighting,
    x0: jax.Array,
    eps: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """Per example, the mean over its elements of the weighted squared error. x0, eps: [B, ...]; t: [B]. Returns [B].

    apply(x, time) is the network. Multiply by the number of elements for the sum in the papers' norms.
    """
    x = add_noise(process, x0, eps, t)
    output = apply(prediction.input(process, x, t), process.time_input(t))
    error = jnp.square(prediction.target(process, x0, eps, t) - output)
    return weighting(process, t) / prediction.scale(process, t) * error.mean(range(1, error.ndim))
