"""Functions from denoiser to denoiser. They compose by nesting, and change fields of the Prediction by `_replace`."""

from collections.abc import Callable

import jax.numpy as jnp

from ddpm_jax.diffusion.predictions import Denoiser, Prediction, x0_to_eps
from ddpm_jax.diffusion.process import Process


def without_shift(prediction: Prediction) -> Prediction:
    """The prediction; ValueError where it has a `shift`, which could not be taken out of an x0 that is set anew."""
    if prediction.shift is not None:
        raise ValueError("a mean shift comes last: clip, threshold and guide first, and wrap the result in mean_shift")
    return prediction


def clipped(denoise: Denoiser, process: Process, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clips x0 and derives eps from it again, so that both describe one x (as guided-diffusion's samplers do)."""

    def clip(x, t):
        prediction = without_shift(denoise(x, t))
        x0 = jnp.clip(prediction.x0, low, high)
        return prediction._replace(x0=x0, eps=x0_to_eps(process, x, t, x0))

    return clip


def clipped_x0(denoise: Denoiser, process: Process, low: float = -1.0, high: float = 1.0) -> Denoiser:  # noqa: ARG001
    """Clips x0 and keeps the network's eps (as diffusers' DDIM does by default)."""

    def clip(x, t):
        prediction = without_shift(denoise(x, t))
        return prediction._replace(x0=jnp.clip(prediction.x0, low, high))

    return clip


def unclipped(denoise: Denoiser, process: Process) -> Denoiser:  # noqa: ARG001
    """The denoiser itself."""
    return denoise


CLIPS: dict[str, Callable[..., Denoiser]] = {"rederive": clipped, "keep_eps": clipped_x0, "none": unclipped}
