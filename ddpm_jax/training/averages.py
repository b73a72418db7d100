"""Averages of the parameters over training, and how one that was not kept follows from those that were.

theta(tau) are the parameters at step tau, constant from k - 1 to k. The power-function average of exponent gamma at step t is

    (1)  int_0^t p(tau; t, gamma) theta(tau) dtau,   p(tau; t, gamma) = (gamma + 1) tau^gamma / t^(gamma + 1)

(Karras et al. 2024 (EDM2), section 3.1). Its relative width is the standard deviation of p in units of t,

    (2)  sigma = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))),

from 0 to 0.2887 at gamma = 0, the plain mean. It is updated without knowing the end of training, see `power_average`.
"""

import jax
import jax.numpy as jnp
import numpy as np


def decayed_average(old, params, decay: float, step: jax.Array):
    """d old + (1 - d) params, with d = min(decay, (1 + step) / (10 + step)), step counted from 0.

    The gradual start keeps the initial parameters out of the averages of short runs.
    """
    return _mixed(old, params, 1 - jnp.minimum(decay, (1 + step) / (10 + step)))


def power_average(old, params, width: float, step: jax.Array):
    """beta old + (1 - beta) params, with beta = (1 - 1/t)^(gamma + 1), t = step + 1: the average (1) at t of that at t - 1.

    Exact, since (1 - 1/t)^(gamma + 1) is the share of p(.; t) that lies before t - 1. At t = 1 it is params.
    """
    return _mixed(old, params, -jnp.expm1((gamma_of(width) + 1) * jnp.log1p(-1 / (step + 1))))


def _mixed(old, params, share):
    return jax.tree.map(lambda old, new: old + share * (new - old), old, params)


def gamma_of(width: float) -> float:
    """The exponent of a relative width, by equation (2): the largest root of
    gamma^3 + 7 gamma^2 + (16 - sigma^-2) gamma + 12 - sigma^-2."""
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


def inner_product(t: np.ndarray, gamma: np.ndarray, other_t: np.ndarray, other_gamma: np.ndarray) -> np.ndarray:
    """int p(tau; t, gamma) p(tau; t', gamma') dtau, with r = earlier / later of t and t', and the gamma of the later one:
    (gamma + 1) (gamma' + 1) / (gamma + gamma' + 1) r^gamma_later / max(t, t')."""
    latest = np.maximum(t, other_t)
    ratio = np.minimum(t, other_t) / latest
    later = np.where(t < other_t, other_gamma, gamma)
    return (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1) * ratio**later / latest


def shares(steps: np.ndarray, widths: np.ndarray, step: float, width: float) -> np.ndarray:
    """What the averages [N] of these steps and widths weigh in that of another width at `step`: [N], their sum is 1.

    Their profiles (1), so weighed, are the nearest to its own: the least-squares solution of EDM2's algorithm 3, then divided
    by its sum as in their code, in float64. One of them alone where it is the one that is asked for.
    """
    t, gamma = np.float64(steps), np.array([gamma_of(one) for one in widths])
    wanted = np.float64(step), np.float64(gamma_of(width))
    matrix = inner_product(t[:, None], gamma[:, None], t[None], gamma[None])
    found = np.linalg.solve(matrix, inner_product(t, gamma, *wanted))
    return found / found.sum()
