"""DPM-Solver: exponential integrators of the probability-flow ODE in lambda = log(alpha / sigma), h = lambda_s - lambda_t.

A step to sigma = 0, where lambda has no end, is the first-order step, to x0_hat.
"""

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
    no_memory,
    order_at,
    remember,
    span,
    time_at,
)


def _on_the_way(process, at, share):
    """The time at this share of the way in lambda; t where it has no end."""
    half_t, h, at_end = span(process, at)
    return jnp.where(at_end, at.t, time_at(process, half_t + share * h))


def _dpm_solver_1_step(denoise, process, x, memory, at):
    x = move_by_eps(process, x, denoise(x, at.t).eps, at.t, at.s)
    return x, x, memory


def _dpm_solver_2_step(denoise, process, x, memory, at):
    _, _, at_end = span(process, at)
    middle = _on_the_way(process, at, 1 / 2)
    eps = denoise(x, at.t).eps
    eps = jnp.where(at_end, eps, denoise(move_by_eps(process, x, eps, at.t, middle), middle).eps)
    x = move_by_eps(process, x, eps, at.t, at.s)
    return x, x, memory


def dpm_solver_2() -> Sampler:
    """DPM-Solver-2, single step (Lu et al. 2022a, algorithm 1, r = 1/2): the eps of the middle in lambda moves x from t to s.

    Order 2. Evaluations per step: 2.
    """
    return Sampler(Partial(no_memory), Partial(_dpm_solver_2_step), noise_free=True, order=2, needs_alpha=IN_LOG_SNR)


BY = {"eps": (move_by_eps, bend_by_eps), "x0": (move_by_x0, bend_by_x0)}


def _third_order_step(kind, denoise, process, x, memory, at):
    """kind: which of the predictions is taken as a line in lambda."""
    move, bend = BY[kind.value]
    predicted = lambda x, t: getattr(denoise(x, t), kind.value)  # noqa: E731
    _, h, _ = span(process, at)
    first, second = (_on_the_way(process, at, share) for share in (1 / 3, 2 / 3))
    here = predicted(x, at.t)

    def moved(to, slope, h):
        """x moved by here + slope u from u = 0 to 1."""
        return move(process, x, here, at.t, to) + bend(process, to, h, [here, slope])

    at_first = predicted(moved(first, 0.0, h / 3), first)
    at_second = predicted(moved(second, 2 * (at_first - here), 2 * h / 3), second)
    x = moved(at.s, 1.5 * (at_second - here), h)
    return x, x, memory


def dpm_solver_3() -> Sampler:
    """DPM-Solver-3, single step (Lu et al. 2022a, algorithm 2, r = 1/3 and 2/3).

    eps is taken as a line in lambda: from t through 1/3 of the way up to 2/3, from t through 2/3 up to s. Order 3. Evaluations
    per step: 3.
    """
    step = Partial(_third_order_step, Static("eps"))
    return Sampler(Partial(no_memory), step, noise_free=True, order=3, needs_alpha=IN_LOG_SNR)


def _dpmpp_2s(denoise, process, x, at):
    """x_s, and x0_hat at t."""
    _, _, at_end = span(process, at)
    middle = _on_the_way(process, at, 1 / 2)
    x0 = denoise(x, at.t).x0
    at_middle = denoise(move_by_x0(process, x, x0, at.t, middle), middle).x0
    return move_by_x0(process, x, jnp.where(at_end, x0, at_middle), at.t, at.s), x0


def _dpmpp_2s_step(denoise, process, x, memory, at):
    x, _ = _dpmpp_2s(denoise, process, x, at)
    return x, x, memory


def dpmpp_2s() -> Sampler:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1, r = 1/2): the x0 of the middle in lambda moves x from t to s.

    Order 2. Evaluations per step: 2.
    """
    return Sampler(Partial(no_memory), Partial(_dpmpp_2s_step), noise_free=True, order=2, needs_alpha=IN_LOG_SNR)


def dpmpp_3s() -> Sampler:
    """DPM-Solver++ of order 3, single step (Lu et al. 2022b, their code): `dpm_solver_3` with x0 in the place of eps.

    Order 3. Evaluations per step: 3.
    """
    step = Partial(_third_order_step, Static("x0"))
    return Sampler(Partial(no_memory), step, noise_free=True, order=3, needs_alpha=IN_LOG_SNR)


FAST_ENDS = {0: (_dpm_solver_2_step, _dpm_solver_1_step), 1: (_dpm_solver_1_step,), 2: (_dpm_solver_2_step,)}


def dpm_fast(*, remainder: int = 0) -> Sampler:
    """`dpm_solver_3` whose last steps are of lower order, for any number of evaluations (Lu et al. 2022a, section 3.4).

    For a budget of 3 k + remainder: k + 1 transitions, even in log-SNR (`grids.log_snr`), the last of order 1 or 2, or with the
    remainder 0 the last two of orders 2 and 1. With one step of order 1 the whole is of order 2, with one of order 2 it keeps
    its 3. ValueError for another remainder. Evaluations per step: as its order.
    """
    if remainder not in FAST_ENDS:
        raise ValueError(f"remainder must be 0, 1 or 2, found {remainder}")
    end = tuple(map(Partial, FAST_ENDS[remainder]))
    order, step = 3 if remainder == 2 else 2, Partial(_third_order_step, Static("eps"))
    return Sampler(Partial(no_memory), step, noise_free=True, end=end, order=order, needs_alpha=IN_LOG_SNR)


def _slope_before(history, x0, half_t, h, order):
    """The change of x0_hat over a step of length h at the pace of the step before; 0 where the order is 1 or h infinite."""
    values, places = history
    first = (order < 2) | jnp.isinf(h)
    return jnp.where(first, 0.0, h) / jnp.where(first, 1.0, half_t - places[0]) * (x0 - values[0])


def _dpmpp_2m_step(lower_order_final, denoise, process, x, memory, at):
    half_t, h, at_end = span(process, at)
    x0 = denoise(x, at.t).x0
    slope = _slope_before(memory, x0, half_t, h, order_at(at, at_end, lower_order_final))
    x = move_by_x0(process, x, x0 + 0.5 * slope, at.t, at.s)
    return x, x, remember(memory, x0, half_t)


def dpmpp_2m(*, lower_order_final: bool = False) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order in half log-SNR, with the x0 of the step before.

    x_s = sigma_s / sigma_t x_t - alpha_s (e^-h - 1) D, D = x0 + h / (2 h_before) (x0 - x0_before); D = x0 at the first step and
    at a step to sigma = 0; with lower_order_final at the last step too, as their code has it below 15 steps. Evaluations per
    step: 1.
    """
    step = Partial(_dpmpp_2m_step, jnp.asarray(lower_order_final))
    return Sampler(Partial(no_history, Static(1)), step, noise_free=True, order=2)


def _dpmpp_3m_step(published, lower_order_final, denoise, process, x, memory, at):
    half_t, h, at_end = span(process, at)
    x0 = denoise(x, at.t).x0
    values, places = memory
    nodes, values = (0.0, *((place - half_t) / h for place in places)), (x0, *values)
    moved = move_by_x0(process, x, x0, at.t, at.s)

    def second(moved):
        if published.value:
            return move_by_x0(process, x, x0 + 0.5 * _slope_before(memory, x0, half_t, h, 2), at.t, at.s)
        return moved + bend_by_x0(process, at.s, h, newton(nodes[:2], values[:2]))

    def third(moved):
        c = newton(nodes, values)
        return moved + bend_by_x0(process, at.s, h, [*c[:2], 0.5 * c[2] if published.value else c[2]])

    x = by_order(order_at(at, at_end, lower_order_final), (lambda moved: moved, second, third), moved)
    return x, x, remember(memory, x0, half_t)


def _dpmpp_3m_start(denoise, process, x, memory, at):
    x, x0 = _dpmpp_2s(denoise, process, x, at)
    return x, x, remember(memory, x0, half_log_snr(process, at.t))


def dpmpp_3m(*, published: bool = False, lower_order_final: bool = False) -> Sampler:
    """DPM-Solver++(3M) (Lu et al. 2022b, appendix; their code): the parabola through x0 of the last three steps, in lambda.

    Started with a step of 2S, so that it is of order 3. published: as in their code, with half the square term, started with
    DDIM and 2M, so of order 2. lower_order_final: the last step is DDIM's, and the one before of order 2, as their code has it
    below 15 steps. Evaluations per step: 1, and 1 more at the first unless published.
    """
    history = Partial(no_history, Static(2))
    step = Partial(_dpmpp_3m_step, Static(published), jnp.asarray(lower_order_final))
    if published:
        return Sampler(history, step, noise_free=True, order=2, needs_alpha=IN_LOG_SNR)
    start = {"start": Partial(_dpmpp_3m_start), "starts": 1}
    return Sampler(history, step, noise_free=True, order=3, needs_alpha=IN_LOG_SNR, **start)
