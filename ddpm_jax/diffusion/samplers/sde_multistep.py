"""Multistep samplers of a reverse SDE: exponential integrators in lambda = log(alpha / sigma), h = lambda_s - lambda_t.

With eta times the noise variance of equation (6) of `process`, and u from 0 at t to 1 at s, the SDE's solution is, exactly,

    x_s = sigma_s / sigma_t e^{-eta h} x_t + alpha_s k int_0^1 e^{-k (1 - u)} x0(u) du + sigma_s sqrt(1 - e^{-2 eta h}) z,

k = (1 + eta) h (Xue et al. 2023 (SA-Solver), prop. 4.2, eta = tau^2), and a method is a polynomial in u in place of x0, through
what was predicted at the last steps. eta = 0 is the probability-flow ODE, eta = 1 the SDE of the forward process. A step to
sigma = 0 is of the first order, to x0_hat.
"""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.process import root
from ddpm_jax.diffusion.samplers.core import (
    IN_LOG_SNR,
    Sampler,
    Static,
    by_order,
    half_log_snr,
    integral,
    newton,
    no_history,
    order_at,
    remember,
)

FAR = 1e4  # an h beyond which e^-h is 0


def _lengths(process, t, s):
    """lambda_t, h (of infinite ones FAR) and whether sigma_s = 0."""
    half_t, half_s = half_log_snr(process, t), half_log_snr(process, s)
    h = half_s - half_t
    return half_t, jnp.where(jnp.isinf(h), FAR, h), jnp.isposinf(half_s)


def _moved(process, x, x0, t, s, h, eta):
    """The step for constant x0, without its noise."""
    of_x = process.sigma(s) / process.sigma(t) * jnp.exp(-eta * h)
    return of_x * x - process.alpha(s) * jnp.expm1(-(1 + eta) * h) * x0


def _bend(process, s, h, eta, coefficients):
    """What the terms c_1 u + c_2 u^2 + .. of x0(u) add to x_s."""
    k = (1 + eta) * h
    return process.alpha(s) * k * integral(-k, [0.0, *coefficients[1:]])


def _noise(process, s, h, eta):
    """The deviation of what is drawn anew."""
    return process.sigma(s) * root(-jnp.expm1(-2 * eta * h))


def _midpoint(process, s, h, eta, c):
    """One slope with the weight of the middle, u = 1/2, in place of that of its integral."""
    return -process.alpha(s) * jnp.expm1(-(1 + eta) * h) * 0.5 * c[1]


SLOPES = {"midpoint": _midpoint, "heun": _bend}


def _dpmpp_step(order, slope, published, lower_order_final, eta, denoise, process, x, memory, at):
    half_t, h, at_end = _lengths(process, at.t, at.s)
    x0 = denoise(x, at.t).x0
    values, places = memory
    nodes, values = (0.0, *((place - half_t) / h for place in places)), (x0, *values)
    moved = _moved(process, x, x0, at.t, at.s, h, eta)

    def second(moved):
        return moved + SLOPES[slope.value](process, at.s, h, eta, newton(nodes[:2], values[:2]))

    def third(moved):
        c = newton(nodes, values)
        return moved + _bend(process, at.s, h, eta, [*c[:2], 0.5 * c[2] if published.value else c[2]])

    methods = (lambda moved: moved, second, third)[: order.value]
    highest = jnp.where(jnp.isinf(half_t), 1, order_at(at, at_end, lower_order_final))
    mean = by_order(jnp.where((at.i > 0) & jnp.isinf(places[0]), 1, highest), methods, moved)
    return mean + _noise(process, at.s, h, eta) * at.noise(0), mean, remember(memory, x0, half_t)


def _dpmpp(order, slope, published, lower_order_final, eta, needs_alpha):
    eta = jnp.asarray(eta, float)
    knobs = Static(order), Static(slope), Static(published), jnp.asarray(lower_order_final), eta
    history = Partial(no_history, Static(order - 1))
    return Sampler(history, Partial(_dpmpp_step, *knobs), noise_free=eta == 0, order=2, needs_alpha=needs_alpha)


def sde_dpmpp_2m(*, eta: float = 1.0, slope: str = "midpoint", lower_order_final: bool = False) -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, eq. 18 with the slope of 2M; k-diffusion, sample_dpmpp_2m_sde).

    slope: that of the last two x0 has the weight of the middle of the step (midpoint), or that of its integral (heun). eta = 0
    with midpoint is `dpmpp_2m`. Without the slope it would be the ancestral step with the small variance. lower_order_final: as
    in `dpmpp_2m`. Bias: second power of the step, where the denoiser is affine. ValueError for another slope. Evaluations per
    step: 1.
    """
    if slope not in SLOPES:
        raise ValueError(f"slope must be one of {', '.join(SLOPES)}, found {slope!r}")
    return _dpmpp(2, slope, False, lower_order_final, eta, "")


def sde_dpmpp_3m(*, eta: float = 1.0, published: bool = False, lower_order_final: bool = True) -> Sampler:
    """SDE-DPM-Solver++(3M) (k-diffusion, sample_dpmpp_3m_sde): the parabola through x0 of the last three steps, in lambda.

    published: as in their code, with half the square term. It starts with its lower orders. lower_order_final: as in
    `dpmpp_3m`, but by default: else a last step that is long in lambda, as grids even in t have it, is extrapolated to many
    times the deviation of narrow data. Bias: second power of the step, where the denoiser is affine. Evaluations per step: 1.
    """
    return _dpmpp(3, "heun", published, lower_order_final, eta, IN_LOG_SNR)


def _sa_methods(process, x, t, s, h, eta, values, nodes, order):
    """The steps of orders 1 .. order, functions of no argument: through values[k] at u = nodes[k], of which one is 0."""
    base = nodes.index(0.0)

    def of(count):
        c = newton(nodes[:count], values[:count])
        moved = _moved(process, x, c[0] if base < count else values[0], t, s, h, eta)
        return moved + _bend(process, s, h, eta, c)

    return [lambda count=count: of(count) for count in range(1, order + 1)]


def _sa_step(order, corrector_order, lower_order_final, tau, denoise, process, x, memory, at):
    before, t_before, noise_before, history = memory
    eta = tau**2
    half_t, h, at_end = _lengths(process, at.t, at.s)
    x0 = denoise(x, at.t).x0
    if corrector_order.value:  # the step that led here once more, with what was found here and the noise that it had
        values, places = history
        from_half, h_before, _ = _lengths(process, t_before, at.t)
        nodes = (1.0, 0.0, *((place - from_half) / h_before for place in places[1:]))
        methods = _sa_methods(process, before, t_before, at.t, h_before, eta, (x0, *values), nodes, corrector_order.value + 1)
        made = order_at(at._replace(i=at.i - 1), False, lower_order_final)
        again = [lambda method=method: method() + noise_before for method in methods[1:]]
        x = by_order(jnp.where(at.i == 0, 1, jnp.minimum(made, corrector_order.value) + 1), [lambda: x, *again])
    history = remember(history, x0, half_t)
    values, places = history
    nodes = (0.0, *((place - half_t) / h for place in places[1:]))
    methods = _sa_methods(process, x, at.t, at.s, h, eta, values, nodes, order.value)
    mean = by_order(order_at(at, at_end, lower_order_final), methods)
    noise = _noise(process, at.s, h, eta) * at.noise(0)
    return mean + noise, mean, (x, at.t, noise, history)


def _sa_memory(length, x):
    return x, jnp.zeros((), x.dtype), jnp.zeros_like(x), no_history(length, x)


def sa_solver(*, order: int = 2, corrector_order: int = 2, tau: float = 1.0, lower_order_final: bool = True) -> Sampler:
    """SA-Solver (Xue et al. 2023, algorithm 1, on x0): stochastic Adams predictor of `order` and corrector, constant tau.

    The prediction at s, once made, corrects the step that led there, whose noise stays; the state at the end is not corrected.
    corrector_order: past predictions that the corrector uses besides the new one; 0: none. tau^2 is the eta of the other
    samplers of this file; tau = 0 is a solver of the probability-flow ODE. It starts with its lower orders. Bias: second power
    of the step, where the denoiser is affine. ValueError for other orders. Evaluations per step: 1.
    """
    if order not in (1, 2, 3) or corrector_order not in (0, 1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3 and corrector_order 0 to 3, found {order} and {corrector_order}")
    tau = jnp.asarray(tau, float)
    return Sampler(
        Partial(_sa_memory, Static(max(order, corrector_order))),
        Partial(_sa_step, Static(order), Static(corrector_order), jnp.asarray(lower_order_final), tau),
        noise_free=tau == 0,
        order=min(max(order, corrector_order + 1), 2),
        needs_alpha=IN_LOG_SNR,
    )
