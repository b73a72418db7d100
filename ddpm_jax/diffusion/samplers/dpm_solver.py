"""DPM-Solver: exponential integrators of the probability-flow ODE in lambda = log(alpha / sigma), h = lambda_s - lambda_t.

A step to sigma = 0, where lambda has no end, is the first-order step, to x0_hat.
"""

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.process import one_minus_snr_ratio
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
    remember,
    span,
    time_at,
)


def _on_the_way(process, at, share):
    """The time at this share of the way in lambda; t where it has no end."""
    half_t, h, at_end = span(process, at)
    return jnp.where(at_end, at.t, time_at(process, half_t + share * h))


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


def _dpm_solver_3_step(denoise, process, x, memory, at):
    _, h, _ = span(process, at)
    first, second = (_on_the_way(process, at, share) for share in (1 / 3, 2 / 3))
    eps = denoise(x, at.t).eps

    def moved(to, slope, h):
        """x moved by eps + slope u from u = 0 to 1."""
        return move_by_eps(process, x, eps, at.t, to) + bend_by_eps(process, to, h, [eps, slope])

    at_first = denoise(moved(first, 0.0, h / 3), first).eps
    at_second = denoise(moved(second, 2 * (at_first - eps), 2 * h / 3), second).eps
    x = moved(at.s, 1.5 * (at_second - eps), h)
    return x, x, memory


def dpm_solver_3() -> Sampler:
    """DPM-Solver-3, single step (Lu et al. 2022a, algorithm 2, r = 1/3 and 2/3).

    eps is taken as a line in lambda: from t through 1/3 of the way up to 2/3, from t through 2/3 up to s. Order 3. Evaluations
    per step: 3.
    """
    return Sampler(Partial(no_memory), Partial(_dpm_solver_3_step), noise_free=True, order=3, needs_alpha=IN_LOG_SNR)


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


def _extrapolated(history, x0, half_t, half_s, i):
    """x0_hat with half the slope of the last step over the coming one: (h / 2 h_before) (x0 - x0_before).

    x0 as it is at the first step and at one from or to an infinite log-SNR.
    """
    values, places = history
    first = (i == 0) | jnp.isinf(half_s)
    ratio = 0.5 * jnp.where(first, 0.0, half_s - half_t) / jnp.where(i == 0, 1.0, half_t - places[0])
    return x0 + ratio * (x0 - values[0])


def _dpmpp_2m_step(denoise, process, x, memory, at):
    half_t, half_s = half_log_snr(process, at.t), half_log_snr(process, at.s)
    x0 = denoise(x, at.t).x0
    x = move_by_x0(process, x, _extrapolated(memory, x0, half_t, half_s, at.i), at.t, at.s)
    return x, x, remember(memory, x0, half_t)


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): second order in half log-SNR, with the x0 of the step before.

    x_s = sigma_s / sigma_t x_t - alpha_s (e^-h - 1) D, D = x0 + h / (2 h_before) (x0 - x0_before); D = x0 at the first step and
    at a step to sigma = 0. Evaluations per step: 1.
    """
    return Sampler(Partial(no_history, Static(1)), Partial(_dpmpp_2m_step), noise_free=True, order=2)


def _sde_dpmpp_2m_step(denoise, process, x, memory, at):
    half_t, half_s = half_log_snr(process, at.t), half_log_snr(process, at.s)
    x0 = denoise(x, at.t).x0
    d = _extrapolated(memory, x0, half_t, half_s, at.i)
    r = one_minus_snr_ratio(process, at.t, at.s)
    of_x = process.sigma(at.s) / process.sigma(at.t) * jnp.exp(half_t - half_s)
    mean = of_x * x + process.alpha(at.s) * r * d
    return mean + process.sigma(at.s) * jnp.sqrt(r) * at.noise(0), mean, remember(memory, x0, half_t)


def sde_dpmpp_2m() -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, eq. 18 with the slope of 2M): the same for the reverse SDE.

    x_s = sigma_s / sigma_t e^-h x_t + alpha_s (1 - e^-2h) D + sigma_s sqrt(1 - e^-2h) z, with D of `dpmpp_2m`; with D = x0 it
    would be the ancestral step with the small variance. Bias: second power of the step, where the denoiser is affine.
    Evaluations per step: 1.
    """
    return Sampler(Partial(no_history, Static(1)), Partial(_sde_dpmpp_2m_step), order=2)


def _dpmpp_3m_step(published, denoise, process, x, memory, at):
    half_t, h, at_end = span(process, at)
    x0 = denoise(x, at.t).x0
    values, places = memory
    nodes, values = (0.0, *((place - half_t) / h for place in places)), (x0, *values)
    moved = move_by_x0(process, x, x0, at.t, at.s)

    def second(moved):
        if published.value:
            return move_by_x0(process, x, _extrapolated(memory, x0, half_t, half_t + h, at.i), at.t, at.s)
        return moved + bend_by_x0(process, at.s, h, newton(nodes[:2], values[:2]))

    def third(moved):
        c = newton(nodes, values)
        return moved + bend_by_x0(process, at.s, h, [*c[:2], 0.5 * c[2] if published.value else c[2]])

    x = by_order(jnp.where(at_end, 1, at.i + 1), (lambda moved: moved, second, third), moved)
    return x, x, remember(memory, x0, half_t)


def _dpmpp_3m_start(denoise, process, x, memory, at):
    x, x0 = _dpmpp_2s(denoise, process, x, at)
    return x, x, remember(memory, x0, half_log_snr(process, at.t))


def dpmpp_3m(*, published: bool = False) -> Sampler:
    """DPM-Solver++(3M) (Lu et al. 2022b, appendix; their code): the parabola through x0 of the last three steps, in lambda.

    Started with a step of 2S, so that it is of order 3. published: as in their code, with half the square term, started with
    DDIM and 2M, so of order 2. Evaluations per step: 1, and 1 more at the first unless published.
    """
    history, step = Partial(no_history, Static(2)), Partial(_dpmpp_3m_step, Static(published))
    if published:
        return Sampler(history, step, noise_free=True, order=2, needs_alpha=IN_LOG_SNR)
    start = {"start": Partial(_dpmpp_3m_start), "starts": 1}
    return Sampler(history, step, noise_free=True, order=3, needs_alpha=IN_LOG_SNR, **start)
