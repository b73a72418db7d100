"""Samplers: how a state at time t becomes a state at s < t.

A sampler is (init, step). step(denoise, process, x, memory, at) -> (x, mean, memory), where `mean` leaves out the last
noise of the step and `at` says where it stands. It knows of no scan, key or network; `sample` owns these.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.posterior import VARIANCES, posterior_mean
from ddpm_jax.diffusion.processes import one_minus_snr_ratio


class At(NamedTuple):
    """A step's place: from time t to s, the i-th of n; noise(j) is its j-th standard normal, shaped like x."""

    t: jax.Array
    s: jax.Array
    i: jax.Array
    n: int
    noise: Callable


class Sampler(NamedTuple):
    """init(x) -> memory, and step as above. Both are `Partial`s, so a sampler is a pytree and its knobs are traced."""

    init: Callable
    step: Callable


def _no_memory(x):  # noqa: ARG001 - the signature of every init
    return ()


def _ancestral_step(variance, denoise, process, x, memory, at):
    mean = posterior_mean(process, x, denoise(x, at.t).x0, at.t, at.s)
    return mean + jnp.sqrt(variance(process, at.t, at.s)) * at.noise(0), mean, memory


def ancestral(*, variance: str = "large") -> Sampler:
    """x_s ~ N(E[x_s | x_t, x0_hat], variance I) (Ho et al. 2020, algorithm 2), for any pair of times.

    variance: "small" (sigma_s^2 (1 - SNR_t/SNR_s)) or "large" (beta_n on a full chain). Evaluations per step: 1.
    """
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

    Song et al. 2021 (DDIM), eq. 12 and 16. eta = 0 is deterministic, eta = 1 the ancestral step with the small variance.
    eta in [0, 1], may be traced; ValueError for another where it is concrete. Evaluations per step: 1.
    """
    if not isinstance(eta, jax.core.Tracer) and not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, found {eta}")
    return Sampler(Partial(_no_memory), Partial(_ddim_step, jnp.asarray(eta, float)))


SAMPLERS: dict[str, Callable[..., Sampler]] = {"ancestral": ancestral, "ddim": ddim}
