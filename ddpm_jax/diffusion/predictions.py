"""What a network predicts, and the denoisers made from it.

A denoiser is a function denoise(x, t) -> Prediction, for x [B, ...] and t [] or [B]: all that samplers, likelihoods and
guidance see of a model. With x = alpha x0 + sigma eps, either of x0 and eps gives the other.

Errors of all types measure one thing. At a fixed x, an estimate that is off is off along one line: x0 by -sigma e and eps by
alpha e, for some e. So every type's squared error is a finite multiple of |e|^2, its `scale`, and squared errors of two types
are to each other as their scales; weightings (`losses`) are multiples of |e|^2 too, and nothing is divided by an alpha or a
sigma that may be 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.process import Process, check_times, concrete, derivative, expand


class Prediction(NamedTuple):
    """Estimates of x0 and eps at one (x, t), the network evaluations that they cost, and its second output or None.

    `variance_output`, shaped like x, is what a network with learned variance says of the variance; see `posterior`. `shift`,
    shaped like x, is the part of the score in x0 and eps that the ancestral step adds to its mean instead; see
    `guidance.mean_shift`.
    """

    x0: jax.Array
    eps: jax.Array
    evaluations: int | jax.Array = 1
    variance_output: jax.Array | None = None
    shift: jax.Array | None = None


Denoiser = Callable[[jax.Array, jax.Array], Prediction]


class PredictionType(NamedTuple):
    """How a network's output is read and trained.

    to_x0_eps(process, x, t, output) -> (x0, eps); target(process, x0, eps, t) is what the output should be at x = alpha x0 +
    sigma eps, so output = target of (x0, eps) for any pair that makes up x. scale(process, t): the squared error of the output
    in units of |e|^2, above. input(process, x, t): what the network is shown of x. needs_alpha: why the type does not work
    where alpha = 0, or "".
    """

    to_x0_eps: Callable
    target: Callable
    scale: Callable
    input: Callable
    needs_alpha: str = ""


def _coefficients(process, t, like):
    check_times(process, t=t)
    return expand(process.alpha(t), like), expand(process.sigma(t), like)


def _slopes(process, t, like):
    return expand(derivative(process.alpha, t), like), expand(derivative(process.sigma, t), like)


def x0_to_eps(process: Process, x: jax.Array, t: jax.Array, x0: jax.Array) -> jax.Array:
    """eps = (x - alpha x0) / sigma. Needs sigma > 0."""
    alpha, sigma = _coefficients(process, t, x)
    return (x - alpha * x0) / sigma


def eps_to_x0(process: Process, x: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x0 = (x - sigma eps) / alpha. Needs alpha > 0."""
    alpha, sigma = _coefficients(process, t, x)
    return (x - sigma * eps) / alpha


def add_score(process: Process, t: jax.Array, prediction: Prediction, gradient: jax.Array) -> Prediction:
    """The prediction whose score is larger by the gradient: eps - sigma gradient, x0 + sigma^2 / alpha gradient.

    Where alpha = 0 the score says nothing of x0, and the prediction stays as it is. gradient: shaped like x0.
    """
    alpha, sigma = _coefficients(process, t, gradient)
    gradient = jnp.where(alpha == 0, 0.0, gradient)
    x0 = prediction.x0 + sigma**2 / jnp.where(alpha == 0, 1.0, alpha) * gradient
    return prediction._replace(x0=x0, eps=prediction.eps - sigma * gradient)


def _as_it_is(process, x, t):  # noqa: ARG001 - the signature of every input
    return x


def eps() -> PredictionType:
    """The noise (Ho et al. 2020)."""
    return PredictionType(
        lambda process, x, t, output: (eps_to_x0(process, x, t, output), output),
        lambda process, x0, eps, t: eps,  # noqa: ARG005
        lambda process, t: process.alpha(t) ** 2,
        _as_it_is,
        "where alpha = 0, x is eps whatever x0 was, so an eps prediction says nothing of x0",
    )


def x0() -> PredictionType:
    """The data."""
    return PredictionType(
        lambda process, x, t, output: (output, x0_to_eps(process, x, t, output)),
        lambda process, x0, eps, t: x0,  # noqa: ARG005
        lambda process, t: process.sigma(t) ** 2,
        _as_it_is,
    )


def v() -> PredictionType:
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, section 4), also where alpha^2 + sigma^2 is not 1."""

    def to_x0_eps(process, x, t, output):
        alpha, sigma = _coefficients(process, t, x)
        power = alpha**2 + sigma**2
        return (alpha * x - sigma * output) / power, (sigma * x + alpha * output) / power

    def target(process, x0, eps, t):
        alpha, sigma = _coefficients(process, t, x0)
        return alpha * eps - sigma * x0

    return PredictionType(to_x0_eps, target, lambda process, t: (process.alpha(t) ** 2 + process.sigma(t) ** 2) ** 2, _as_it_is)


def score() -> PredictionType:
    """grad log p_t = -eps / sigma (Song et al. 2021)."""

    def to_x0_eps(process, x, t, output):
        eps = -expand(process.sigma(t), x) * output
        return eps_to_x0(process, x, t, eps), eps

    return PredictionType(
        to_x0_eps,
        lambda process, x0, eps, t: -eps / expand(process.sigma(t), x0),
        lambda process, t: (process.alpha(t) / process.sigma(t)) ** 2,
        _as_it_is,
        "where alpha = 0, the score is that of the noise whatever x0 was, so a score prediction says nothing of x0",
    )


def _velocity_determinant(process, t):
    """alpha sigma' - sigma alpha', positive: 1 for rectified flow."""
    return process.alpha(t) * derivative(process.sigma, t) - process.sigma(t) * derivative(process.alpha, t)


def velocity() -> PredictionType:
    """u = dx/dt = alpha' x0 + sigma' eps (Lipman et al. 2023, Liu et al. 2023): eps - x0 for rectified flow.

    x0 = (sigma' x - sigma u) / D, eps = (alpha u - alpha' x) / D, D = alpha sigma' - sigma alpha'.
    """

    def to_x0_eps(process, x, t, output):
        (alpha, sigma), (alpha_slope, sigma_slope) = _coefficients(process, t, x), _slopes(process, t, x)
        determinant = expand(_velocity_determinant(process, t), x)
        return (sigma_slope * x - sigma * output) / determinant, (alpha * output - alpha_slope * x) / determinant

    def target(process, x0, eps, t):
        alpha_slope, sigma_slope = _slopes(process, t, x0)
        return alpha_slope * x0 + sigma_slope * eps

    return PredictionType(to_x0_eps, target, lambda process, t: _velocity_determinant(process, t) ** 2, _as_it_is)


def edm(*, sigma_data: float = 0.5) -> PredictionType:
    """F of x0 = c_skip x + c_out F(c_in x) (Karras et al. 2022, table 1), for any process; d = sigma_data, that of the data.

    w^2 = alpha^2 d^2 + sigma^2 is the variance of x: c_in = 1 / w, c_skip = alpha d^2 / w^2, c_out = sigma d / w. So
    F = (sigma x0 - alpha d^2 eps) / (d w), of variance 1 for data of variance d^2.
    """

    def width(process, t):
        return jnp.sqrt((process.alpha(t) * sigma_data) ** 2 + process.sigma(t) ** 2)

    def to_x0_eps(process, x, t, output):
        (alpha, sigma), w = _coefficients(process, t, x), expand(width(process, t), x)
        x0 = (alpha * sigma_data**2 * x / w + sigma * sigma_data * output) / w
        return x0, (sigma * x / w - alpha * sigma_data * output) / w

    def target(process, x0, eps, t):
        (alpha, sigma), w = _coefficients(process, t, x0), expand(width(process, t), x0)
        return (sigma * x0 - alpha * sigma_data**2 * eps) / (sigma_data * w)

    return PredictionType(
        to_x0_eps,
        target,
        lambda process, t: (width(process, t) / sigma_data) ** 2,
        lambda process, x, t: x / expand(width(process, t), x),
    )


PREDICTIONS: dict[str, Callable[..., PredictionType]] = {
    "eps": eps,
    "x0": x0,
    "v": v,
    "score": score,
    "velocity": velocity,
    "edm": edm,
}


def convert(
    source: PredictionType, target: PredictionType, process: Process, x: jax.Array, t: jax.Array, output: jax.Array
) -> jax.Array:
    """What a network of type `target` would say at (x, t) where one of type `source` says `output`. x, output: [B, ...]."""
    return target.target(process, *source.to_x0_eps(process, x, t, output), t)


def check_alpha(process: Process, prediction: PredictionType) -> None:
    """ValueError with the reason where the process reaches alpha = 0 and the type does not work there."""
    if prediction.needs_alpha and concrete(process):
        with jax.ensure_compile_time_eval():
            reaches_zero = float(_last_alpha(process)) == 0
        if reaches_zero:
            others = [name for name, make in PREDICTIONS.items() if not make().needs_alpha]
            raise ValueError(f"{prediction.needs_alpha}: use one of {', '.join(others)}")


@jax.jit
def _last_alpha(process):
    return process.alpha(process.t_max)


def split_output(output: jax.Array, x: jax.Array, learned_variance: bool) -> tuple[jax.Array, jax.Array | None]:
    """The prediction and `variance_output` in a network's output for x: its halves where it has twice the channels.

    Raises ValueError for an output of another shape.
    """
    wanted = (*x.shape[:-1], (1 + learned_variance) * x.shape[-1])
    if output.shape != wanted:
        raise ValueError(f"the network's output must have shape {list(wanted)} for this x, found {list(output.shape)}")
    return jnp.split(output, 2, axis=-1) if learned_variance else (output, None)


def network_denoiser(
    apply: Callable[[jax.Array, jax.Array], Any],
    process: Process,
    prediction: PredictionType,
    *,
    learned_variance: bool = False,
) -> Denoiser:
    """The denoiser of a network apply(x [B, ...], time [B]) -> output, with parameters and conditioning already bound.

    learned_variance: the output has twice the channels of x; its first half is the prediction, the second
    `variance_output`. The denoiser raises ValueError for a concrete t outside [0, t_max].
    """
    check_alpha(process, prediction)

    def denoise(x, t):
        check_times(process, t=t)
        time = jnp.broadcast_to(process.time_input(t), x.shape[:1])
        output, variance_output = split_output(apply(prediction.input(process, x, t), time), x, learned_variance)
        return Prediction(*prediction.to_x0_eps(process, x, t, output), variance_output=variance_output)

    return denoise
