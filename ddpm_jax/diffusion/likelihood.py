"""Likelihoods of a trained denoiser: exact ones along the probability-flow ODE, and the variational bound of the chain.

Along the flow from x at t_min to x_T at t_max, dx/dt = h(x, t), the instantaneous change of variables gives

    log p(x) = log prior(x_T) + int div h dt                                                                 (1)

(Chen et al. 2018, eq. 8; Song et al. 2021, score SDE, eq. 39). It is integrated in the coordinates of `probability_flow`; their
change of scale, r^D, is in closed form. The divergence is an average over probes v with E[v v^T] = I of v^T J v (Hutchinson;
Grathwohl et al. 2019, FFJORD, eq. 7), J the Jacobian, each probe the same along the whole path.

In bits per dimension a density of images is that of (k + u) / 128 - 1, levels k = 0..255 and u uniform in [0, 1); its expected
logarithm bounds that of the levels' probability from below (Theis et al. 2016, eq. 3).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import adaptive, probability_flow
from ddpm_jax.diffusion.bound import bins, bits, bound_term, last_term
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.predictions import Denoiser
from ddpm_jax.diffusion.process import Process, add_noise, concrete, expand, prior_kl, prior_log_density

# ------------------------------------------------------------------------------------------------ images and bits


def dequantise(levels: jax.Array, keys: jax.Array) -> jax.Array:
    """(k + u) / 128 - 1 in [-1, 1). levels: [B, ...], integers 0..255; keys: [B], one per image."""
    uniform = jax.vmap(lambda key: jax.random.uniform(key, levels.shape[1:]))(keys)
    return (levels + uniform) / 128 - 1


def dequantised_bits(log_density: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Bits per dimension of images of this shape, from the log density in nats of what `dequantise` gives.

    A level is 1/128 wide, which is 7 bits: the uniform density on [-1, 1]^D, log p = -D log 2, has 8.
    """
    return bits(-log_density, shape) + 7


# ------------------------------------------------------------------------------------------------ probes


def rademacher(keys: jax.Array, shape: tuple[int, ...], count: int) -> jax.Array:
    """`count` probes of +1 and -1 with equal chances: no variance from the diagonal of J. Probe j is addressed by (key, j)."""
    return _drawn(keys, count, lambda key: jax.random.rademacher(key, shape, float))


def gaussian(keys: jax.Array, shape: tuple[int, ...], count: int) -> jax.Array:
    """`count` standard normal probes; probe j is addressed by (key, j)."""
    return _drawn(keys, count, lambda key: jax.random.normal(key, shape))


def exact(keys: jax.Array, shape: tuple[int, ...], count: int) -> jax.Array:  # noqa: ARG001
    """sqrt(D) times each of the D unit vectors, whose average is the trace itself: D Jacobian-vector products, for small D."""
    basis = jnp.eye(math.prod(shape))
    return jnp.broadcast_to((len(basis) ** 0.5 * basis).reshape(-1, *shape), (len(keys), len(basis), *shape))


def _drawn(keys, count, draw):
    addressed = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(count))
    return jax.vmap(jax.vmap(draw))(addressed)


PROBES: dict[str, Callable] = {"rademacher": rademacher, "gaussian": gaussian, "exact": exact}

# ------------------------------------------------------------------------------------------------ solvers


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: nodes c, rows of coefficients a, weights b."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


FROM_END_TO_END = ("log_snr", "uniform", "karras")  # the grids of `grids` that hold both t_min and t_max
HEUN = Tableau((0, 1), ((), (1,)), (1 / 2, 1 / 2))
RK4 = Tableau((0, 1 / 2, 1 / 2, 1), ((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def _fixed(tableau, slope, process, t_min, state, probes, *, steps, grid):
    """Of `Solver`. A node at an end of a step has its time exactly, so that Heun's method on a table sees only its steps."""

    def body(state, ends):
        (u, t), (u_end, t_end) = ends
        h = u_end - u
        slopes = []
        for node, row in zip(tableau.nodes, tableau.rows, strict=True):
            middle = probability_flow.time(process, u + node * h) if 0 < node < 1 else t_end if node else t
            slopes.append(slope(_advanced(state, h, row, slopes), middle, probes))
        return _advanced(state, h, tableau.weights, slopes), None

    if process.num_steps and concrete(t_min) and abs(float(t_min) * process.num_steps - 1) > 1e-3:
        raise ValueError(f"on a table the grids begin at 1/T, and t_min is {float(t_min):g}: take the solver dopri5")
    times = GRIDS[grid](process, steps=steps, **({} if process.num_steps else {"t_min": t_min}))[::-1]
    points = probability_flow.position(process, times), times
    state, _ = jax.lax.scan(body, state, ([p[:-1] for p in points], [p[1:] for p in points]))
    count = jnp.full(len(probes), len(tableau.nodes) * (steps - 1))
    return adaptive.Solved(state, count, jnp.full(len(probes), True))


def _advanced(state, h, coefficients, slopes):
    for coefficient, slope in zip(coefficients, slopes, strict=True):
        state = jax.tree.map(lambda x, k, c=coefficient: x + c * h * k, state, slope)
    return state


def _adaptive(slope, process, t_min, state, probes, *, rtol, atol, max_evaluations):
    def field(u, state):
        return slope(state, probability_flow.time(process, u), probes)

    first, last = probability_flow.position(process, jnp.stack([t_min, process.t_max]))
    return adaptive.solve(field, state, first, last, rtol=rtol, atol=atol, max_evaluations=max_evaluations)


# solver(slope, process, t_min, state, probes) -> adaptive.Solved, from t_min to t_max; d state / du = slope(state, t, probes)
Solver = Callable[..., adaptive.Solved]


def _of_tableau(tableau, steps, grid):
    if grid not in FROM_END_TO_END:
        raise ValueError(f"grid must be one of {', '.join(FROM_END_TO_END)}, found {grid!r}")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, the two ends, found {steps}")
    return partial(_fixed, tableau, steps=steps, grid=grid)


def heun(*, steps: int = 100, grid: str = "log_snr") -> Solver:
    """Heun's method on `steps` points: order 2, 2 evaluations from one to the next, on a table at its own steps alone."""
    return _of_tableau(HEUN, steps, grid)


def rk4(*, steps: int = 50, grid: str = "log_snr") -> Solver:
    """The method of Runge and Kutta on `steps` points: order 4, 4 evaluations from one to the next, two of them half-way."""
    return _of_tableau(RK4, steps, grid)


def dopri5(*, rtol: float = 1e-5, atol: float = 1e-5, max_evaluations: int = 10_000) -> Solver:
    """`adaptive.solve`, with the state and the log density of an example under one control of the error."""
    return partial(_adaptive, rtol=rtol, atol=atol, max_evaluations=max_evaluations)


SOLVERS: dict[str, Callable[..., Solver]] = {"heun": heun, "rk4": rk4, "dopri5": dopri5}

# ------------------------------------------------------------------------------------------------ the probability-flow ODE


class Likelihood(NamedTuple):
    """log p(x) in nats [B]; its standard error over the probes [B]; evaluations [B] of the denoiser; x at t_max [B, ...].

    The error is 0 with the exact trace and nan with one probe. Each evaluation is followed by one Jacobian-vector product per
    probe. Where an adaptive solver did not arrive, all but the evaluations is nan.
    """

    log_density: jax.Array
    standard_error: jax.Array
    evaluations: jax.Array
    latent: jax.Array


def log_likelihood(
    denoise: Denoiser,
    process: Process,
    x: jax.Array,
    keys: jax.Array,
    *,
    solver: Solver,
    probe: str = "rademacher",
    probes: int = 1,
    t_min: jax.Array | None = None,
    prior: Callable[[jax.Array], jax.Array] | None = None,
) -> Likelihood:
    """log p(x) of (1), where x [B, ...] is the state at t_min: by default the process's for likelihoods.

    keys: [B], one per example, whose probes depend on it alone. solver: of `SOLVERS`. probe: of `PROBES`; exact makes its own
    number of `probes`. prior(x_T) -> log density [B]: by default the process's, from which the true density of x_T differs.

    Raises ValueError for an unknown probe, fewer than one, a concrete t_min with sigma = 0, and where the grid does not apply.
    """
    if probe not in PROBES:
        raise ValueError(f"probe must be one of {', '.join(PROBES)}, found {probe!r}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, found {probes}")
    t_min = jnp.asarray(process.t_min.likelihood if t_min is None else t_min, float)
    _check_start(process, t_min)
    directions = PROBES[probe](keys, x.shape[1:], probes)
    first, last = probability_flow.scale(process, t_min), probability_flow.scale(process, process.t_max)

    def slope(state, t, directions):
        def flow(w):
            return probability_flow.slope(denoise, process, w, t)

        def along(direction):  # in forward mode: gradients of convolutions are slow in loops on CPU
            flowing, changed = jax.jvp(flow, (state[0],), (direction,))
            return flowing, (direction * changed).reshape(len(direction), -1).sum(1)

        return jax.vmap(along, 1, (None, 1))(directions)

    state = x / first, jnp.zeros(directions.shape[:2])
    (w, gains), calls, reached = solver(slope, process, t_min, state, directions)
    latent = last * w
    prior = partial(prior_log_density, process) if prior is None else prior
    dimensions = x[0].size
    log_density = prior(latent) + dimensions * (jnp.log(last) - jnp.log(first)) + gains.mean(1)
    several = gains.std(1) / math.sqrt(probes - 1) if probes > 1 else jnp.full(len(x), jnp.nan)
    error = jnp.zeros(len(x)) if probe == "exact" else several
    per_call = denoise(x, t_min).evaluations  # of which a compiler keeps nothing else
    log_density, error = (jnp.where(reached, value, jnp.nan) for value in (log_density, error))
    return Likelihood(log_density, error, calls * per_call, jnp.where(expand(reached, x), latent, jnp.nan))


def _check_start(process, t_min):
    if concrete(process, t_min):
        with jax.ensure_compile_time_eval():
            if not 0 <= t_min < process.t_max or process.sigma(t_min) == 0:
                raise ValueError(
                    f"t_min must lie between 0 and t_max, with sigma > 0 for there to be a density, found {t_min:g}"
                )


# ------------------------------------------------------------------------------------------------ the variational bound


class Bound(NamedTuple):
    """-log p(x_0) is at most prior + terms.sum(0) + decoder, in nats and in expectation over the noise.

    prior (L_T), decoder (L_0): [B]. terms [K, B]: of the transitions from times [K, B], each as often as it stands for others.
    evaluations []: of the denoiser.
    """

    prior: jax.Array
    terms: jax.Array
    times: jax.Array
    decoder: jax.Array
    evaluations: jax.Array


def variational_bound(
    denoise: Denoiser,
    process: Process,
    x0: jax.Array,
    keys: jax.Array,
    times: jax.Array,
    *,
    variance: Callable,
    terms: int = 0,
    to_data: bool = False,
    decoder: Callable = bins,
) -> Bound:
    """The bound of the chain that goes down `times` [N] from t_max to data, one noise per term (Ho et al. 2020, eq. 5).

    denoise: with x0 clipped, `transforms.clipped`, where the data lie in [-1, 1], as published. x0: [B, ...]. keys: [B]; the
    noise of transition i is addressed by (key, i), that of the decoder by (key, N - 1). variance: of `bound.BOUND_VARIANCES`.

    terms: 0 sums all N - 1 transitions. K of them: one in each of K equal parts of the chain, drawn for each example from
    (key, N), stands for its part, so that the expectation is the whole sum.

    to_data: what follows times[-1]. True, for tables: a last step of the chain, to 0, whose density is the decoder around
    x0_hat. False, where noise is left at the end: the decoder of x_t, `bound.last_term`.
    """
    _check_decreasing(process, times)
    count = len(times) - 1
    terms = terms or count
    if not 1 <= terms <= count:
        raise ValueError(f"terms must be 0, for all, or up to the {count} transitions of these times, found {terms}")
    steps = jnp.arange(terms)
    if terms < count:
        uniform = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, len(times)), (terms,)), out_axes=1)(keys)
        places = jnp.clip(jnp.floor((steps[:, None] + uniform) * (count / terms)).astype(int), 0, count - 1)
    else:
        places = jnp.broadcast_to(steps[:, None], (terms, len(keys)))

    def noised(place, t):
        eps = jax.vmap(lambda key, i: jax.random.normal(jax.random.fold_in(key, i), x0.shape[1:]))(keys, place)
        return add_noise(process, x0, eps, t)

    def body(evaluations, place):
        t, s = times[place], times[place + 1]
        prediction = denoise(noised(place, t), t)
        return evaluations + prediction.evaluations, bound_term(process, x0, prediction, t, s, variance)

    evaluations, values = jax.lax.scan(body, jnp.asarray(0), places)
    t = jnp.broadcast_to(times[-1], len(keys))
    x = noised(jnp.full(len(keys), count), t)
    if to_data:
        prediction = denoise(x, t)
        evaluations += prediction.evaluations
        last = bound_term(process, x0, prediction, t, jnp.zeros_like(t), variance, decoder)
    else:
        last = last_term(process, x0, x, t, decoder)
    return Bound(prior_kl(process, x0), values * (count / terms), times[places], last, evaluations)


def chain_times(process: Process, *, steps: int) -> jax.Array:
    """The times of the bound's chain: T/T .. 1/T of a table; in continuous time `steps`, from t_max to the likelihood's t_min.

    These are evenly spaced in the position of `probability_flow`: in log-SNR, but for where there is hardly any signal.
    """
    if process.num_steps:
        return GRIDS["uniform"](process, steps=process.num_steps)
    ends = jnp.stack([process.t_max, process.t_min.likelihood])
    times = probability_flow.time(process, jnp.linspace(*probability_flow.position(process, ends), steps))
    return times.at[0].set(ends[0]).at[-1].set(ends[1])


def _check_decreasing(process, times):
    if concrete(process, times):
        with jax.ensure_compile_time_eval():
            grid = np.asarray(times)
            if grid.ndim != 1 or len(grid) < 2 or not np.all(np.diff(grid) < 0) or grid[0] != process.t_max:
                raise ValueError(f"times must decrease from t_max = {process.t_max:.9g}, two or more, found {grid}")
            if not grid[-1] >= 0 or process.sigma(times[-1]) == 0:
                raise ValueError(
                    f"times must end where sigma > 0, found {grid[-1]:g}: to_data=True makes the step from there to 0"
                )
