"""Samplers: how a state at time t becomes a state at s < t.

A sampler is (init, step). step(denoise, process, x, memory, at) -> (x, mean, memory), where `mean` leaves out the last
noise of the step and `at` says where it stands. It knows of no scan, key or network; `sample` owns these. A new sampler is a
step, a constructor and a row of `SAMPLERS`; `oracle` says how to see whether it is right.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.posterior import VARIANCES, posterior_mean
from ddpm_jax.diffusion.process import derivative, one_minus_snr_ratio


class At(NamedTuple):
    """A step's place: from time t to s, the i-th of n; noise(j) is its j-th standard normal, shaped like x."""

    t: jax.Array
    s: jax.Array
    i: jax.Array
    n: int
    noise: Callable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """init(x) -> memory, and step as above. Both are `Partial`s, so a sampler is a pytree and its knobs are traced.

    needs_alpha: why it cannot start where alpha = 0, or "".
    """

    init: Callable
    step: Callable
    needs_alpha: str = dataclasses.field(metadata={"static": True}, default="")


def _no_memory(x):  # noqa: ARG001 - the signature of every init
    return ()


def _ancestral_step(variance, denoise, process, x, memory, at):
    prediction = denoise(x, at.t)
    mean = posterior_mean(process, x, prediction.x0, at.t, at.s)
    deviation = jnp.sqrt(variance(process, at.t, at.s, prediction.raw))
    return mean + deviation * at.noise(0), mean, memory


def ancestral(*, variance: str = "large") -> Sampler:
    """x_s ~ N(E[x_s | x_t, x0_hat], variance I) (Ho et al. 2020, algorithm 2), for any pair of times.

    variance: small, large, learned or learned_range, of `posterior`; ValueError for another. Evaluations per step: 1.
    """
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, found {variance!r}")
    return Sampler(Partial(_no_memory), Partial(_ancestral_step, Partial(VARIANCES[variance])))


def _ddim_step(eta, denoise, process, x, memory, at):
    prediction = denoise(x, at.t)
    sigma = process.sigma(at.s)
    fresh = eta * jnp.sqrt(one_minus_snr_ratio(process, at.t, at.s))  # the share of sigma_s that is drawn anew
    kept = 1 - fresh**2
    kept = jnp.where(kept == 0, 0.0, jnp.sqrt(jnp.where(kept == 0, 1.0, kept)))  # with a finite gradient where all is fresh
    mean = process.alpha(at.s) * prediction.x0 + sigma * kept * prediction.eps
    return mean + sigma * fresh * at.noise(0), mean, memory


def ddim(*, eta: float = 0.0) -> Sampler:
    """x_s = alpha_s x0_hat + sqrt(sigma_s^2 - c^2) eps_hat + c z,  c^2 = eta^2 sigma_s^2 (1 - SNR_t / SNR_s).

    Song et al. 2021 (DDIM), eq. 12 and 16. eta = 0 is deterministic, and Euler's method for x / alpha in sigma / alpha; eta = 1
    is the ancestral step with the small variance. eta in [0, 1], may be traced; ValueError for another where it is concrete.
    Evaluations per step: 1.
    """
    if not isinstance(eta, jax.core.Tracer) and not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, found {eta}")
    return Sampler(Partial(_no_memory), Partial(_ddim_step, jnp.asarray(eta, float)))


def _euler_step(denoise, process, x, memory, at):
    prediction = denoise(x, at.t)
    slope = derivative(process.alpha, at.t) * prediction.x0 + derivative(process.sigma, at.t) * prediction.eps
    x = x + (at.s - at.t) * slope
    return x, x, memory


def euler() -> Sampler:
    """x_s = x_t + (s - t) (alpha' x0_hat + sigma' eps_hat): Euler's method in t for the probability-flow ODE.

    Equation (7) of `process`; Song et al. 2021 (score SDE), eq. 13. On rectified flow and EDM it is `ddim`. Evaluations per
    step: 1.
    """
    return Sampler(Partial(_no_memory), Partial(_euler_step))


def _heun_step(denoise, process, x, memory, at):
    d_alpha, d_sigma = process.alpha(at.s) - process.alpha(at.t), process.sigma(at.s) - process.sigma(at.t)
    here = denoise(x, at.t)
    euler = x + d_alpha * here.x0 + d_sigma * here.eps
    at_end = process.sigma(at.s) == 0  # nothing can be denoised there, and Euler's step is the end
    there = denoise(euler, jnp.where(at_end, at.t, at.s))
    heun = x + d_alpha * 0.5 * (here.x0 + there.x0) + d_sigma * 0.5 * (here.eps + there.eps)
    x = jnp.where(at_end, euler, heun)
    return x, x, memory


def heun() -> Sampler:
    """The trapezoidal rule for dx = x0 d alpha + eps d sigma, equation (7) of `process`, after a step of Euler's.

    For alpha = 1 and for rectified flow Karras et al. 2022, algorithm 1; written with differences of alpha and sigma it
    needs no derivative of a table. Evaluations per step: 2, also for a last step to sigma = 0, which is Euler's:
    `last="denoise"` from the time before costs 1 and gives the same.
    """
    return Sampler(Partial(_no_memory), Partial(_heun_step))


def _euler_maruyama_step(denoise, process, x, memory, at):
    g2, dt = process.diffusion2(at.t), at.t - at.s
    score = -denoise(x, at.t).eps / process.sigma(at.t)
    mean = x - (process.drift(at.t) * x - g2 * score) * dt
    return mean + jnp.sqrt(g2 * dt) * at.noise(0), mean, memory


def euler_maruyama() -> Sampler:
    """x_s = x_t - (f x_t - g^2 score) dt + g sqrt(dt) z, dt = t - s: the reverse SDE, equation (6) of `process`.

    Song et al. 2021 (score SDE), section 4. Evaluations per step: 1.
    """
    return Sampler(
        Partial(_no_memory),
        Partial(_euler_maruyama_step),
        needs_alpha="the drift of its SDE is infinite where alpha = 0",
    )


def _no_history(x):
    return jnp.zeros_like(x), jnp.zeros((), x.dtype)


def _dpmpp_2m_step(denoise, process, x, memory, at):
    previous_x0, previous_half = memory
    half_t, half_s = process.log_snr(at.t) / 2, process.log_snr(at.s) / 2
    h = half_s - half_t
    x0 = denoise(x, at.t).x0
    first_order = (at.i == 0) | jnp.isposinf(half_s)  # no history, or a step to sigma = 0
    ratio = 0.5 * jnp.where(first_order, 0.0, h) / jnp.where(at.i == 0, 1.0, half_t - previous_half)
    slope = x0 + ratio * (x0 - previous_x0)
    x = process.sigma(at.s) / process.sigma(at.t) * x - process.alpha(at.s) * jnp.expm1(-h) * slope
    return x, x, (x0, half_t)


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order in half log-SNR, with the x0 of the step before.

    x_s = sigma_s / sigma_t x_t - alpha_s (e^-h - 1) D, D = x0 + h / (2 h_before) (x0 - x0_before); D = x0 at the first step and
    at a step to sigma = 0. Evaluations per step: 1.
    """
    return Sampler(Partial(_no_history), Partial(_dpmpp_2m_step))


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "euler_maruyama": euler_maruyama,
    "dpmpp_2m": dpmpp_2m,
}
