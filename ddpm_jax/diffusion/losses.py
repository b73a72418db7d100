"""Weightings of the squared error, and the losses made of them and of the variational bound.

A weighting weight(process, t) multiplies |e|^2, the error that all prediction types share (`predictions`): eps is off by
alpha e and x0 by -sigma e, so a paper's weight of |eps - eps_hat|^2 is here times alpha^2, of |x0 - x0_hat|^2 times sigma^2.
Each type's error is computed in its own space. With SNR = alpha^2 / sigma^2 and g^2 / sigma^2 = -d log_snr/dt:

                   of |eps - eps_hat|^2                          of |x0 - x0_hat|^2, that times SNR
    simple         1, also known as snr and ncsn                 SNR
    x0             1 / SNR                                       1
    truncated_snr  max(1, 1 / SNR)                               max(SNR, 1)
    v              1 + 1 / SNR, where alpha^2 + sigma^2 = 1      SNR + 1
    min_snr        min(1, gamma / SNR)                           min(SNR, gamma)
    p2             1 / (k + SNR)^power                           SNR / (k + SNR)^power
    sigmoid        sigmoid(bias - log_snr) (-d log_snr/dt)       the same times SNR
    likelihood     -d log_snr/dt                                 the same times SNR
    edm            1 + sigma^2 / d^2, where alpha = 1            (sigma^2 + d^2) / (sigma d)^2
    velocity       (sigma' - sigma alpha'/alpha)^2               the same times SNR

None contains the density of t, at which they are as their papers have them: log_normal for edm, elsewhere uniform. Only sigmoid
and likelihood contain -d log_snr/dt: with it a mean over uniform t is an integral over log-SNR.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.bound import BOUND_VARIANCES, bins, bits, bound_term
from ddpm_jax.diffusion.posterior import FIXED_VARIANCES
from ddpm_jax.diffusion.predictions import PREDICTIONS, Prediction, PredictionType, split_output
from ddpm_jax.diffusion.process import Process, add_noise, derivative, reaches_data

Weighting = Callable[[Process, jax.Array], jax.Array]


def simple() -> Weighting:
    """|eps - eps_hat|^2 (Ho et al. 2020, eq. 14).

    This is also SNR |x0 - x0_hat|^2 (Salimans & Ho 2022, section 4) and sigma^2 |score - score_hat|^2, what NCSN weighs by
    (Song & Ermon 2019, section 4.2).
    """
    return PREDICTIONS["eps"]().scale


def x0() -> Weighting:
    """|x0 - x0_hat|^2."""
    return PREDICTIONS["x0"]().scale


def truncated_snr() -> Weighting:
    """max(|x0 - x0_hat|^2, |eps - eps_hat|^2), that is max(SNR, 1) |x0 - x0_hat|^2 (Salimans & Ho 2022, section 4)."""
    return lambda process, t: jnp.maximum(process.alpha(t), process.sigma(t)) ** 2


def v() -> Weighting:
    """|v - v_hat|^2: "SNR + 1" of the squared x0 error where alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, section 4)."""
    return PREDICTIONS["v"]().scale


def min_snr(*, gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) |x0 - x0_hat|^2 (Hang et al. 2023).

    For a network of eps this is their min(SNR, gamma) / SNR, for one of v, where alpha^2 + sigma^2 = 1, min(SNR, gamma) /
    (SNR + 1), each of the network's own squared error.
    """
    return lambda process, t: jnp.minimum(process.alpha(t) ** 2, gamma * process.sigma(t) ** 2)


def p2(*, k: float = 1.0, power: float = 1.0) -> Weighting:
    """|eps - eps_hat|^2 / (k + SNR)^power, k > 0 (Choi et al. 2022, whose gamma is the power)."""

    def weight(process, t):
        signal, noise = process.alpha(t) ** 2, process.sigma(t) ** 2
        return signal * (noise / (k * noise + signal)) ** power

    return weight


def sigmoid(*, bias: float = 0.0) -> Weighting:
    """sigmoid(bias - log_snr) (-d log_snr/dt) |eps - eps_hat|^2 (Kingma & Gao 2023; Hoogeboom et al. 2024, SiD2)."""
    rate = likelihood()
    return lambda process, t: rate(process, t) * jax.nn.sigmoid(bias - process.log_snr(t))


def likelihood() -> Weighting:
    """g^2 |score - score_hat|^2 = (-d log_snr/dt) |eps - eps_hat|^2 (Song et al. 2021, maximum likelihood training).

    Half its integral over t bounds the negative log-likelihood, but for a constant. As 2 alpha / sigma (alpha sigma' - sigma
    alpha') of |e|^2 it is finite at alpha = 0. At small sigma it grows as 2 sigma' / sigma: as 1 / sigma^2 on vp, as 1 / sigma
    on rectified_flow; on ve, where sigma is geometric, it is constant.
    """

    def weight(process, t):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return 2 * alpha / sigma * (alpha * derivative(process.sigma, t) - sigma * derivative(process.alpha, t))

    return weight


def velocity() -> Weighting:
    """|u - u_hat|^2, of |e|^2 (alpha sigma' - sigma alpha')^2 (Lipman et al. 2023, eq. 9; Liu et al. 2023, eq. 1)."""
    return PREDICTIONS["velocity"]().scale


def edm(*, sigma_data: float = 0.5) -> Weighting:
    """|F - F_hat|^2: where alpha = 1, (sigma^2 + d^2) / (sigma d)^2 |x0 - x0_hat|^2, d = sigma_data (Karras et al. 2022)."""
    return PREDICTIONS["edm"](sigma_data=sigma_data).scale


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "simple": simple,
    "snr": simple,
    "ncsn": simple,
    "x0": x0,
    "truncated_snr": truncated_snr,
    "v": v,
    "min_snr": min_snr,
    "p2": p2,
    "sigmoid": sigmoid,
    "likelihood": likelihood,
    "velocity": velocity,
    "edm": edm,
}


_CHAIN = "the bound's terms are those of a chain of steps that ends in the data, at sigma = 0"


class Loss(NamedTuple):
    """of(apply, process, prediction, x0, eps, t, decoder) -> [B] for x0, eps [B, ...] and t [B]; apply(x, time) is the network.

    decoder: of the bound's last step, see `bound`; by default that of pixels. learns: the variance of `posterior.VARIANCES`
    that the network has a second output for, after the first in the last axis; or "". needs_chain: why it needs a table of
    steps down to sigma = 0, or "".
    """

    of: Callable
    learns: str = ""
    needs_chain: str = ""


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
    _, output, _ = _predict(apply, process, prediction, x0, eps, t)
    return _error(output, process, prediction, weighting, x0, eps, t)


def _predict(apply, process, prediction, x0, eps, t, learned_variance=False):
    """x_t, and the network's prediction and second output or None."""
    x = add_noise(process, x0, eps, t)
    return x, *split_output(apply(prediction.input(process, x, t), process.time_input(t)), x, learned_variance)


def _error(output, process, prediction, weighting, x0, eps, t):
    error = jnp.square(prediction.target(process, x0, eps, t) - output)
    return weighting(process, t) / prediction.scale(process, t) * error.mean(range(1, error.ndim))


def _bound(x, output, variance_output, variance, process, prediction, x0, t, decoder):
    """The bound's term of the pair (t, t - 1/T), in bits per dimension; x0_hat is not clipped. [B]."""
    s = (jnp.rint(t * process.num_steps) - 1) / process.num_steps
    guess = Prediction(*prediction.to_x0_eps(process, x, t, output), variance_output=variance_output)
    return bits(bound_term(process, x0, guess, t, s, BOUND_VARIANCES[variance], decoder), x0.shape[1:])


def denoising(*, weighting: Weighting) -> Loss:
    """`denoising_loss` with this weighting."""

    def of(apply, process, prediction, x0, eps, t, decoder=bins):  # noqa: ARG001 - it has no bound
        return denoising_loss(apply, process, prediction, weighting, x0, eps, t)

    return Loss(of)


def hybrid(*, weighting: Weighting, variance: str) -> Loss:
    """`denoising_loss` + (T / 1000) L_t, in which only the variance learns (Nichol & Dhariwal 2021, section 3.1 and code).

    L_t, the bound's term of the step from t, is in bits per dimension, with no gradient through the network's first output. So
    the mean over uniform t is that of the weighted error + 0.001 L_vlb. Raises ValueError for a fixed variance.
    """
    if variance in FIXED_VARIANCES:
        raise ValueError(
            f"the hybrid loss trains the variance, and {variance} is fixed: take loss.variance=learned_range or learned, or "
            "loss.name=denoising or vlb"
        )

    def of(apply, process, prediction, x0, eps, t, decoder=bins):
        x, output, variance_output = _predict(apply, process, prediction, x0, eps, t, learned_variance=True)
        bound = _bound(x, jax.lax.stop_gradient(output), variance_output, variance, process, prediction, x0, t, decoder)
        return _error(output, process, prediction, weighting, x0, eps, t) + process.num_steps / 1000 * bound

    return Loss(of, variance, _CHAIN)


def vlb(*, variance: str) -> Loss:
    """T L_t in bits per dimension: its mean over uniform t is L_vlb but for L_T (Nichol & Dhariwal 2021, section 3.3 and code).

    variance: of the reverse step, fixed or learned.
    """
    learns = "" if variance in FIXED_VARIANCES else variance

    def of(apply, process, prediction, x0, eps, t, decoder=bins):
        x, output, variance_output = _predict(apply, process, prediction, x0, eps, t, learned_variance=bool(learns))
        return process.num_steps * _bound(x, output, variance_output, variance, process, prediction, x0, t, decoder)

    return Loss(of, learns, _CHAIN)


LOSSES: dict[str, Callable[..., Loss]] = {"denoising": denoising, "hybrid": hybrid, "vlb": vlb}


def check_chain(process: Process, loss: Loss) -> None:
    """ValueError with the reason where the loss needs a table of steps down to sigma = 0, and the process is none."""
    if loss.needs_chain and not (process.num_steps > 1 and reaches_data(process)):
        raise ValueError(f"{loss.needs_chain}: take a beta table of two steps or more as the process, or loss.name=denoising")
