"""Multistep samplers of the probability-flow ODE: what was predicted at the last steps is used again.

Where the history is too short, at the start, the order is lower.
"""

import math

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.samplers.core import (
    IN_LOG_SNR,
    Sampler,
    Static,
    bend_by_eps,
    bend_by_x0,
    by_order,
    half_log_snr,
    move_by_eps,
    move_by_x0,
    newton,
    no_history,
    order_at,
    remember,
    span,
)

# ------------------------------------------------------------- exponential Adams-Bashforth


def _check_order(order):
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, found {order}")


def _euler_and_there(denoise, process, x, at):
    """eps at t, x moved by it to s, eps there, and whether sigma_s = 0, in which case it is asked for at t instead."""
    eps = denoise(x, at.t).eps
    euler, at_end = move_by_eps(process, x, eps, at.t, at.s), process.sigma(at.s) == 0
    return eps, euler, denoise(euler, jnp.where(at_end, at.t, at.s)).eps, at_end


def _deis_step(order, lower_order_final, denoise, process, x, memory, at):
    half_t, h, at_end = span(process, at)
    eps = denoise(x, at.t).eps
    values, places = memory
    nodes, values = (0.0, *((place - half_t) / h for place in places)), (eps, *values)

    def through(count):
        return lambda x: x + bend_by_eps(process, at.s, h, newton(nodes[:count], values[:count]))

    moved = move_by_eps(process, x, eps, at.t, at.s)
    methods = (lambda x: x, *(through(k) for k in range(2, order.value + 1)))
    x = by_order(order_at(at, at_end, lower_order_final), methods, moved)
    return x, x, remember(memory, eps, half_t)


def _deis_start(denoise, process, x, memory, at):
    half_t, h, _ = span(process, at)
    eps, euler, there, at_end = _euler_and_there(denoise, process, x, at)
    x = euler + jnp.where(at_end, 0.0, bend_by_eps(process, at.s, h, [eps, there - eps]))
    return x, x, remember(memory, eps, half_t)


def deis(*, order: int = 2, published: bool = False, lower_order_final: bool = False) -> Sampler:
    """Exponential Adams-Bashforth in lambda = log(alpha / sigma): the polynomial through the eps of the last `order` steps.

    DEIS (Zhang & Chen 2023, section 3.3) with polynomials in log(sigma / alpha); order 1 is DDIM. Order 3 starts with a step of
    Heun's method, without which (published) it would be of order 2. lower_order_final: 1 at the last step, 2 at the one before.
    ValueError for other orders. Evaluations per step: 1, and 1
    more at the first of order 3 unless published.
    """
    _check_order(order)
    history = Partial(no_history, Static(max(order - 1, 1)))
    step = Partial(_deis_step, Static(order), jnp.asarray(lower_order_final))
    if published or order < 3:
        return Sampler(history, step, noise_free=True, order=min(order, 2), needs_alpha=IN_LOG_SNR)
    start = {"start": Partial(_deis_start), "starts": 1}
    return Sampler(history, step, noise_free=True, order=3, needs_alpha=IN_LOG_SNR, **start)


# ------------------------------------------------------------- pseudo numerical methods

# Weights of the newest eps and those before it, where none, one, two or three are remembered.
ADAMS_BASHFORTH = (
    (1, 0, 0, 0),
    (3 / 2, -1 / 2, 0, 0),
    (23 / 12, -16 / 12, 5 / 12, 0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _plms_step(denoise, process, x, memory, at):
    eps = denoise(x, at.t).eps
    row = jnp.asarray(ADAMS_BASHFORTH, x.dtype)[jnp.minimum(at.i, 3)]
    mixed = row[0] * eps + jnp.tensordot(row[1:], memory[0], 1)
    x = move_by_eps(process, x, mixed, at.t, at.s)
    return x, x, remember(memory, eps, at.t)


def _plms_start(denoise, process, x, memory, at):
    eps, euler, there, at_end = _euler_and_there(denoise, process, x, at)
    x = jnp.where(at_end, euler, move_by_eps(process, x, 0.5 * (eps + there), at.t, at.s))
    return x, x, remember(memory, eps, at.t)


def _plms_refuses(z):
    """Its first step is Heun's in z. On data of unit variance the mean of both eps is off by the least it can be, and x / alpha
    by that times the step: refused where this is more than the deviation of x / alpha there."""
    off = 0.25 * (z[0] - z[1]) * (1 / (1 + z[1] ** 2) - 1 / (1 + z[0] ** 2)) / math.sqrt(1 + z[1] ** 2)
    return "" if off < 1 else _too_far(z[0], z[1])


def _too_far(z, to):
    return (
        f"its first step, along sigma / alpha from {z:.3g} to {to:.3g}, is too long for a Runge-Kutta method: take the grid "
        "log_snr, karras or leading, more points, or another sampler"
    )


def plms() -> Sampler:
    """PLMS: x / alpha moves by a mean of the last four eps times the change of sigma / alpha (Liu et al. 2022, eq. 11, 12).

    The weights of Adams and Bashforth are right for even steps in the variable of integration, which steps in sigma / alpha
    are not, so the order is 2. The first step is Heun's, the next two have 2 and 3 terms (Rombach et al. 2022, code).
    Evaluations per step: 1, at the first 2.
    """
    return _pseudo_numerical(Partial(_plms_start), 1, _plms_refuses)


def _pndm_start(denoise, process, x, memory, at):
    at_end = process.sigma(at.s) == 0
    middle, end = 0.5 * (at.t + at.s), jnp.where(at_end, at.t, at.s)

    def eps_after(eps, s):
        return denoise(move_by_eps(process, x, eps, at.t, s), s).eps

    first = denoise(x, at.t).eps
    second = eps_after(first, middle)
    third = eps_after(second, middle)
    mixed = (first + 2 * second + 2 * third + eps_after(third, end)) / 6
    x = move_by_eps(process, x, jnp.where(at_end, first, mixed), at.t, at.s)
    return x, x, remember(memory, first, at.t)


def _pndm_refuses(z):
    """Each of the four stages multiplies the error of the one before by the step over sigma / alpha, so that in the end it is
    about (t / s)^3 / (48 (1 + s^2)) of x / alpha on data of unit variance: refused from 10 on, where data of deviation 0.3 end
    at twice that."""
    far = ((t, s) for t, s in zip(z[:3], z[1:4], strict=False) if (t / s) ** 3 > 480 * (1 + s**2))
    return next((_too_far(t, s) for t, s in far), "")


def pndm() -> Sampler:
    """PNDM: `plms` whose first three steps are of the fourth-order Runge-Kutta form (Liu et al. 2022, algorithm 2, eq. 13).

    Their middle is that in t; on a table it may lie between two steps. Order 2. Evaluations per step: 1, at the first three 4.
    """
    return _pseudo_numerical(Partial(_pndm_start), 3, _pndm_refuses)


def _pseudo_numerical(start, starts, refuses):
    history, step = Partial(no_history, Static(3)), Partial(_plms_step)
    knobs = {"start": start, "starts": starts, "order": 2, "needs_alpha": ON_RATIO, "refuses": refuses}
    return Sampler(history, step, noise_free=True, **knobs)


ON_RATIO = "it moves along sigma / alpha, which is infinite where alpha = 0"

# ------------------------------------------------------------- linear multistep


def _lms_step(order, lower_order_final, denoise, process, x, memory, at):
    half_t, half_s = half_log_snr(process, at.t), half_log_snr(process, at.s)
    z_t, z_s = jnp.exp(-half_t), jnp.exp(-half_s)
    eps = denoise(x, at.t).eps
    values, places = memory
    nodes, values = (0.0, *((place - z_t) / (z_s - z_t) for place in places)), (eps, *values)

    def through(count):
        """The mean over the step of the polynomial through the last `count` eps."""
        return lambda: sum(c / (k + 1) for k, c in enumerate(newton(nodes[:count], values[:count])))

    mixed = by_order(order_at(at, False, lower_order_final), [through(k) for k in range(1, order.value + 1)])
    x = move_by_eps(process, x, mixed, at.t, at.s)
    return x, x, remember(memory, eps, z_t)


def lms(*, order: int = 4, lower_order_final: bool = False) -> Sampler:
    """x / alpha moves by the integral over sigma / alpha of the polynomial through the last `order` eps, in sigma / alpha.

    The method of Adams and Bashforth for uneven steps (Crowson, k-diffusion, sample_lms). It starts with its lower orders, so
    its order is 1, 2, 2, 2 for order = 1, 2, 3, 4. ValueError for another. Evaluations per step: 1.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order must be 1, 2, 3 or 4, found {order}")
    return Sampler(
        Partial(no_history, Static(max(order - 1, 1))),
        Partial(_lms_step, Static(order), jnp.asarray(lower_order_final)),
        noise_free=True,
        order=min(order, 2),
        needs_alpha=ON_RATIO,
    )


# ------------------------------------------------------------- UniPC


def _unipc_methods(process, x, t, s, values, places, order, b, corrected=None):
    """The steps of orders 1 .. order from t to s, functions of no argument, with x0 = values[k] at lambda = places[k].

    b: their B(h), of `UNIPC_B`. corrected: x0 at s, with which they are one order higher.
    """
    half_t, half_s = places[0], half_log_snr(process, s)
    h = jnp.where(jnp.isposinf(half_s), 1.0, half_s - half_t)
    at_s = () if corrected is None else ((1.0, corrected),)

    def of(count):
        moved = move_by_x0(process, x, values[0], t, s)
        past = [((place - half_t) / h, value) for place, value in zip(places[1:count], values[1:count], strict=True)]
        known = [*past, *at_s]
        if not known:
            return moved
        if len(known) == 1:  # one slope with the weight B(h) / 2, in place of that of its integral
            ((node, value),) = known
            return moved - process.alpha(s) * b(-h) * 0.5 * (value - values[0]) / node
        nodes, known_values = zip(*known, strict=True)
        c = newton((0.0, *nodes), (values[0], *known_values))
        return moved + bend_by_x0(process, s, h, c)

    return [lambda count=count: of(count) for count in range(1, order + 1)]


UNIPC_B = {"bh1": lambda h: h, "bh2": jnp.expm1}  # of h = lambda_t - lambda_s


def _unipc_step(order, corrector, variant, lower_order_final, denoise, process, x, memory, at):
    before, t_before, (values, places) = memory
    half_t, x0, b = half_log_snr(process, at.t), denoise(x, at.t).x0, UNIPC_B[variant.value]
    if corrector.value:
        methods = _unipc_methods(process, before, t_before, at.t, values, places, order.value, b, x0)
        made = order_at(at._replace(i=at.i - 1), False, lower_order_final)  # the order of the step that led here
        x = by_order(jnp.where(at.i == 0, 1, made + 1), [lambda: x, *methods])
    values, places = (x0, *values), (half_t, *places)
    methods = _unipc_methods(process, x, at.t, at.s, values, places, order.value, b)
    moved = by_order(order_at(at, process.sigma(at.s) == 0, lower_order_final), methods)
    return moved, moved, (x, at.t, remember(memory[2], x0, half_t))


def _unipc_memory(order, x):
    return x, jnp.zeros((), x.dtype), no_history(order, x)


def unipc(*, order: int = 2, corrector: bool = True, variant: str = "bh2", lower_order_final: bool = False) -> Sampler:
    """UniPC (Zhao et al. 2023, algorithms 5 and 6, on x0); without the corrector UniP. B(h) is -h (bh1) or e^-h - 1 (bh2).

    The prediction at s, once made, first corrects the step that led there; the state at the end is not corrected. A predictor
    of order 2 and a corrector of order 1 weigh their one difference by B / 2; higher ones solve for the weights, which is to
    integrate the polynomial through all values. It starts with its lower orders. Its order is 2, 3, 3 for order = 1, 2, 3, that
    of UniP 1, 2, 2. lower_order_final: the last step is of order 1, the one before of order 2. ValueError for another order or
    variant. Evaluations per step: 1.
    """
    _check_order(order)
    if variant not in UNIPC_B:
        raise ValueError(f"variant must be one of {', '.join(UNIPC_B)}, found {variant!r}")
    return Sampler(
        Partial(_unipc_memory, Static(order)),
        Partial(_unipc_step, Static(order), Static(corrector), Static(variant), jnp.asarray(lower_order_final)),
        noise_free=True,
        order=min(order + 1, 3) if corrector else min(order, 2),
        needs_alpha=IN_LOG_SNR,
    )
