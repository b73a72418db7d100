"""Samplers that step below the level of s by a method of the probability-flow ODE, and come back up to it with fresh noise.

In y = x / alpha and z = sigma / alpha, z_up = eta z_s sqrt(r), r = 1 - SNR_t / SNR_s, is the deviation of the fresh noise, and
z_down = z_s sqrt(1 - eta^2 r) where the method steps to (Crowson, k-diffusion, get_ancestral_step). With Euler's method this is
`ddim`.
"""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.process import root
from ddpm_jax.diffusion.samplers.core import IN_LOG_SNR, Sampler, no_memory, span, time_at


def _down(eta, h):
    """log(z_t / z_down), and z_up / z_s, of two levels whose log(1 / z) are h apart, h finite."""
    r = -jnp.expm1(-2 * h)
    return h - 0.5 * jnp.log1p(-(eta**2) * r), eta * root(r)


def _by_eps(process, x, prediction, t, s, h):
    """x at alpha_s, moved by eps over the length h; h may be infinite."""
    a = process.alpha(s) / process.alpha(t)
    return a * x + a * process.sigma(t) * jnp.expm1(-h) * prediction.eps


def _by_x0(process, x, prediction, t, s, h):
    """x at alpha_s, moved by x0 over the length h; h may be infinite."""
    return process.alpha(s) / process.alpha(t) * jnp.exp(-h) * x - process.alpha(s) * jnp.expm1(-h) * prediction.x0


def _midpoint_step(move, eta, denoise, process, x, memory, at):
    half_t, h, at_end = span(process, at)
    h_down, up = _down(eta, h)
    middle = jnp.where(at_end, at.t, time_at(process, half_t + h_down / 2))
    here = denoise(x, at.t)
    there = denoise(move(process, x, here, at.t, middle, jnp.where(at_end, 0.0, h_down / 2)), middle)
    mean = move(process, x, there, at.t, at.s, jnp.where(at_end, jnp.inf, h_down))
    return mean + process.sigma(at.s) * up * at.noise(0), mean, memory


def _midpoint(move, eta):
    eta = jnp.asarray(eta, float)
    step = Partial(_midpoint_step, Partial(move), eta)
    return Sampler(Partial(no_memory), step, noise_free=eta == 0, order=2, needs_alpha=IN_LOG_SNR)


def dpm_solver_2_ancestral(*, eta: float = 1.0) -> Sampler:
    """`dpm_solver_2` to z_down and fresh noise up to z_s (k-diffusion, sample_dpm_2_ancestral; diffusers' KDPM2 with noise).

    eta = 0 is `dpm_solver_2`. Bias: second power of the step, where the denoiser is affine. Evaluations per step: 2.
    """
    return _midpoint(_by_eps, eta)


def dpmpp_2s_ancestral(*, eta: float = 1.0) -> Sampler:
    """`dpmpp_2s` to z_down and fresh noise up to z_s (k-diffusion, sample_dpmpp_2s_ancestral).

    eta = 0 is `dpmpp_2s`. Bias: second power of the step, where the denoiser is affine. Evaluations per step: 2.
    """
    return _midpoint(_by_x0, eta)


def _dpmpp_sde_step(eta, denoise, process, x, memory, at):
    half_t, h, at_end = span(process, at)
    middle = jnp.where(at_end, at.t, time_at(process, half_t + h / 2))
    here = denoise(x, at.t)
    to_middle, up_to_middle = _down(eta, h / 2)
    first = at.noise(0)
    x_middle = _by_x0(process, x, here, at.t, middle, jnp.where(at_end, 0.0, to_middle))
    x_middle += jnp.where(at_end, 0.0, process.sigma(middle) * up_to_middle) * first
    there = denoise(x_middle, middle)
    to_s, up = _down(eta, h)
    mean = _by_x0(process, x, there, at.t, at.s, jnp.where(at_end, jnp.inf, to_s))
    share = 1 / (1 + jnp.exp(-h / 2))  # (z_t - z_middle) / (z_t - z_s)
    noise = jnp.sqrt(share) * first + jnp.sqrt(1 - share) * at.noise(1)
    return mean + process.sigma(at.s) * up * noise, mean, memory


def dpmpp_sde(*, eta: float = 1.0) -> Sampler:
    """DPM-Solver++ of the reverse SDE, single step: the x0 of the middle in lambda moves x from t to z_down, noise up to z_s.

    k-diffusion, sample_dpmpp_sde, r = 1/2. The state in the middle has fresh noise too. Both noises are increments of one
    Brownian motion in z from z_t, to z_middle and to z_s. eta = 0 is `dpmpp_2s`. Bias: second power of the step, where the
    denoiser is affine. Evaluations per step: 2.
    """
    eta = jnp.asarray(eta, float)
    step = Partial(_dpmpp_sde_step, eta)
    return Sampler(Partial(no_memory), step, noise_free=eta == 0, order=2, needs_alpha=IN_LOG_SNR)
