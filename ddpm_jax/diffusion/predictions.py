"""What a network predicts, and the denoisers made from it.

A denoiser is a function denoise(x, t) -> Prediction, for x [B, ...] and t [] or [B]: all that samplers, likelihoods and
guidance see of a model. With x = alpha x0 + sigma eps, either of x0 and eps gives the other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.processes import Process, expand


class Prediction(NamedTuple):
    """Estimates of x0 and eps at one (x, t), and the number of network evaluations that they cost."""

    x0: jax.Array
    eps: jax.Array
    evaluations: int | jax.Array = 1


Denoiser = Callable[[jax.Array, jax.Array], Prediction]


def from_eps(process: Process, x: jax.Array, t: jax.Array, eps: jax.Array, evaluations=1) -> Prediction:
    """x0 = (x - sigma eps) / alpha. Needs alpha > 0."""
    x0 = (x - expand(process.sigma(t), x) * eps) / expand(process.alpha(t), x)
    return Prediction(x0, eps, evaluations)


def from_x0(process: Process, x: jax.Array, t: jax.Array, x0: jax.Array, evaluations=1) -> Prediction:
    """eps = (x - alpha x0) / sigma. Needs sigma > 0."""
    eps = (x - expand(process.alpha(t), x) * x0) / expand(process.sigma(t), x)
    return Prediction(x0, eps, evaluations)


class PredictionType(NamedTuple):
    """How a network's output is read and trained.

    target(process, x0, eps, t) is what the output should be. factor(process, t) turns squared eps errors into squared
    errors of the output at fixed x_t: |target - output|^2 = factor |eps - eps_hat|^2.
    """

    to_prediction: Callable
    target: Callable
    factor: Callable


def _eps_target(process, x0, eps, t):  # noqa: ARG001 - the signature of every prediction type
    return eps


def _one(process, t):  # noqa: ARG001 - the signature of every factor and weighting
    return jnp.ones_like(t, float)


PREDICTIONS: dict[str, PredictionType] = {"eps": PredictionType(from_eps, _eps_target, _one)}


def network_denoiser(apply: Callable, process: Process, prediction: PredictionType) -> Denoiser:
    """The denoiser of a network apply(x [B, ...], time [B]) -> output, with parameters and conditioning already bound."""

    def denoise(x, t):
        time = jnp.broadcast_to(process.time_input(t), x.shape[:1])
        return prediction.to_prediction(process, x, t, apply(x, time))

    return denoise
