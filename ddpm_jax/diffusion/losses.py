"""Weightings of the squared eps error, and the loss made of one.

A weighting weight(process, t) multiplies |eps - eps_hat|^2 at times drawn from the time distribution; it contains neither
-d log_snr/dt nor the density of t. The error is computed in the output's own space and brought to eps by the prediction
type's factor, never through x0 -> eps at small sigma.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.predictions import PredictionType
from ddpm_jax.diffusion.processes import Process, add_noise


def simple(process: Process, t: jax.Array) -> jax.Array:  # noqa: ARG001 - the signature of every weighting
    """1 (Ho et al. 2020, eq. 14)."""
    return jnp.ones_like(t)


WEIGHTINGS: dict[str, Callable] = {"simple": simple}


def denoising_loss(
    apply: Callable,
    process: Process,
    prediction: PredictionType,
    weighting: Callable,
    x0: jax.Array,
    eps: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """Per example, the mean over its elements of weight |eps - eps_hat|^2. x0, eps: [B, ...]; t: [B]. Returns [B].

    apply(x, time) is the network. Multiply by the number of elements for the sum in the papers' norms.
    """
    output = apply(add_noise(process, x0, eps, t), process.time_input(t))
    error = jnp.square(prediction.target(process, x0, eps, t) - output)
    return weighting(process, t) / prediction.factor(process, t) * error.mean(range(1, error.ndim))
