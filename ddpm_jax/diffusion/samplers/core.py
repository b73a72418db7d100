"""What a sampler is, and what several of them share."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class At(NamedTuple):
    """A step's place: from time t to s, the i-th of n; noise(j) is its j-th standard normal, shaped like x.

    in_loop(f): the value of f(denoise) -> (value, evaluations), for loops, inside which the evaluations of the step's own
    denoise cannot be counted. See `repeat`.
    """

    t: jax.Array
    s: jax.Array
    i: jax.Array
    n: int
    noise: Callable
    in_loop: Callable


def _nothing(z):  # noqa: ARG001 - the signature of every `refuses`
    return ""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampler:
    """init(x) -> memory; step(denoise, process, x, memory, at) -> (x, mean, memory), `mean` without the last noise of the step.

    All are `Partial`s, so a sampler is a pytree and its knobs are traced. start: the step of the first `starts` transitions,
    where these cost more than the others; end: the steps of the last ones, where these do. noise_free: whether it draws no
    noise, so that it can encode; an array where a knob decides. order: the power of the step with which its error on smooth
    grids falls, that of its path where it draws no noise, else of its moments; 0 where the number of steps does not decide.
    needs_alpha, needs_sigma: why it cannot start where alpha = 0, or end where sigma = 0, or "". refuses(z) -> why it cannot
    make the first steps of a grid down the sigma / alpha z [N], or "".
    """

    init: Callable
    step: Callable
    noise_free: bool | jax.Array = False
    start: Callable | None = None
    starts: int = dataclasses.field(metadata={"static": True}, default=0)
    end: tuple[Callable, ...] = ()
    order: int = dataclasses.field(metadata={"static": True}, default=1)
    needs_alpha: str = dataclasses.field(metadata={"static": True}, default="")
    needs_sigma: str = dataclasses.field(metadata={"static": True}, default="")
    refuses: Callable[[Any], str] = dataclasses.field(metadata={"static": True}, default=_nothing)

    def phases(self, times: jax.Array) -> list[tuple[Callable, tuple[jax.Array, jax.Array, jax.Array]]]:
        """(step, (i, t, s)): which step makes which transitions down or up the times, to scan over."""
        transitions = jnp.arange(len(times) - 1), times[:-1], times[1:]
        count = len(times) - 1
        starts = min(self.starts, count)
        ends = self.end[max(0, len(self.end) - (count - starts)) :]
        parts = [(self.start, slice(starts))] * (starts > 0) + [(self.step, slice(starts, count - len(ends)))]
        parts += [(step, slice(place, place + 1)) for place, step in enumerate(ends, start=count - len(ends))]
        return [(step, tuple(part[which] for part in transitions)) for step, which in parts]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A knob that shapes the program (a count), inside a `Partial` whose others are traced."""

    value: Any


def count_evaluations(denoise: Callable) -> tuple[Callable, Callable, Callable]:
    """(denoise that is counted, `At.in_loop`, a function that gives the evaluations counted so far)."""
    spent = []

    def counted(x, t):
        prediction = denoise(x, t)
        spent.append(prediction.evaluations)
        return prediction

    def in_loop(f):
        value, evaluations = f(denoise)
        spent.append(evaluations)
        return value

    return counted, in_loop, lambda: sum(spent)


def repeat(at: At, n: int, f: Callable, x: jax.Array) -> jax.Array:
    """x = f(denoise, in_loop, x, j) for j = 0 .. n - 1, in a loop whose evaluations are counted."""

    def loop(denoise):
        def body(carry, j):
            x, evaluations = carry
            counted, in_loop, spent = count_evaluations(denoise)
            x = f(counted, in_loop, x, j)
            return (x, evaluations + spent()), None

        return jax.lax.scan(body, (x, jnp.asarray(0)), jnp.arange(n))[0]

    return at.in_loop(loop)


def with_steps(sampler: Sampler, change: Callable) -> Sampler:
    """The sampler, its steps changed; it draws noise."""
    start, end = sampler.start and change(sampler.start), tuple(map(change, sampler.end))
    return dataclasses.replace(sampler, step=change(sampler.step), start=start, end=end, noise_free=False)


def no_memory(x):  # noqa: ARG001 - the signature of every init
    return ()


def half_log_snr(process, t):
    """lambda = log(alpha / sigma)."""
    return process.log_snr(t) / 2


def time_at(process, half_log_snr):
    """t of lambda; on a table also between the steps, where the network is shown a fractional index."""
    return process.inverse_log_snr(2 * half_log_snr)


# ------------------------------------------------------------- exponential integrators, in lambda = log(alpha / sigma)
#
# With h = lambda_s - lambda_t and u from 0 at t to 1 at s, the probability-flow ODE is, exactly,
#
#     x_s = alpha_s / alpha_t x - sigma_s h int_0^1 e^{h (1 - u)} eps(u) du     (Lu et al. 2022a, prop. 3.1)
#         = sigma_s / sigma_t x + alpha_s h int_0^1 e^{-h (1 - u)} x0(u) du     (Lu et al. 2022b, prop. 4.1),
#
# and a method is a polynomial in u in place of eps or x0.


IN_LOG_SNR = "its steps are measured in log-SNR, which is -inf where alpha = 0"


def span(process, at):
    """lambda_t, h (1 where lambda_s is infinite) and whether it is."""
    half_t, half_s = half_log_snr(process, at.t), half_log_snr(process, at.s)
    at_end = jnp.isposinf(half_s)
    return half_t, jnp.where(at_end, 1.0, half_s - half_t), at_end


def phi(k: int, z: jax.Array) -> jax.Array:
    """int_0^1 e^{(1 - u) z} u^{k-1} / (k - 1)! du for k >= 1: where |z| < 1 by its series, else by recurrence from e^z."""
    small = jnp.abs(z) < 1
    near = jnp.where(small, z, 0.0)
    series = sum(near**n * (1 / math.factorial(n + k)) for n in range(17))
    far = jnp.where(small, 1.0, z)
    value = jnp.exp(far)
    for order in range(k):
        value = (value - 1 / math.factorial(order)) / far
    return jnp.where(small, series, value)


def newton(nodes: tuple, values: tuple) -> list:
    """Coefficients c_0, c_1, .. of the polynomial sum c_k u^k through (nodes[i], values[i]), for different nodes."""
    table = list(values)
    for order in range(1, len(nodes)):
        for i in range(len(nodes) - 1, order - 1, -1):
            table[i] = (table[i] - table[i - 1]) / (nodes[i] - nodes[i - order])
    coefficients = [table[-1]]
    for node, value in zip(nodes[-2::-1], table[-2::-1], strict=True):  # Horner's rule in (u - node)
        shifted = [value, *coefficients]
        coefficients = [c - node * up for c, up in zip(shifted, [*coefficients, 0.0], strict=True)]
    return coefficients


def integral(z: jax.Array, coefficients: list) -> jax.Array:
    """int_0^1 e^{(1 - u) z} sum_k c_k u^k du."""
    return sum(math.factorial(k) * phi(k + 1, z) * c for k, c in enumerate(coefficients))


def move_by_x0(process, x, x0, t, s):
    """The step for constant x0: sigma_s / sigma_t x + alpha_s (1 - e^-h) x0. Also where alpha is 0 at t or s, or sigma_s is."""
    h = half_log_snr(process, s) - half_log_snr(process, t)
    of_x, to_zero = process.sigma(s) / process.sigma(t), process.alpha(s) == 0
    of_x0 = -process.alpha(s) * jnp.expm1(-jnp.where(to_zero, 0.0, h))
    return of_x * x + jnp.where(to_zero, -of_x * process.alpha(t), of_x0) * x0


def move_by_eps(process, x, eps, t, s):
    """The step for constant eps: x / alpha moves by eps times the change of sigma / alpha. Also where sigma_s = 0."""
    a = process.alpha(s) / process.alpha(t)
    h = half_log_snr(process, s) - half_log_snr(process, t)
    return a * x + a * process.sigma(t) * jnp.expm1(-h) * eps


def bend_by_eps(process, s, h, coefficients):
    """What the terms c_1 u + c_2 u^2 + .. of eps(u) add to x_s."""
    return -process.sigma(s) * h * integral(h, [0.0, *coefficients[1:]])


def bend_by_x0(process, s, h, coefficients):
    """What the terms c_1 u + c_2 u^2 + .. of x0(u) add to x_s."""
    return process.alpha(s) * h * integral(-h, [0.0, *coefficients[1:]])


# ------------------------------------------------------------- the predictions of the last steps, newest first


def no_history(length, x):
    """[length, *x.shape] values and [length] places, as yet empty."""
    return jnp.zeros((length.value, *x.shape), x.dtype), jnp.zeros(length.value, x.dtype)


def remember(history, value, place):
    """The history with its oldest entry gone and this one before the others."""
    values, places = history
    return tuple(jnp.concatenate([new[None], old[:-1]]) for new, old in ((value, values), (place, places)))


def order_at(at, at_end, lower_order_final):
    """The highest order that a multistep method may have at this step.

    1 at the first step and one more at each that follows, for the history is so long; 1 at a step to sigma = 0; and where it is
    to be lower at the end, 1 at the last step, 2 at the one before, and so on.
    """
    order = jnp.minimum(at.i + 1, jnp.where(lower_order_final, at.n - at.i, at.i + 1))
    return jnp.where(at_end, 1, order)


def by_order(order, methods, *args):
    """methods[order - 1](*args), for a traced order; the methods are of order 1, 2, .."""
    return jax.lax.switch(jnp.clip(order - 1, 0, len(methods) - 1), methods, *args)
