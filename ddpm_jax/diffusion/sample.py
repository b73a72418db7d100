"""The one loop that all samplers run in, down to samples and up to their noise.

`sample` and `encode` are all of it, a `jax.lax.scan` over the transitions. `sampling` and `encoding` are the same in parts, for
programs that tell how far they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.keys import BY_PURPOSE, Purpose, keys_of
from ddpm_jax.diffusion.predictions import Denoiser
from ddpm_jax.diffusion.process import Process, check_times, concrete
from ddpm_jax.diffusion.samplers import At, Sampler, count_evaluations

LASTS = ("denoise", "mean", "stop")


class Sampled(NamedTuple):
    """samples [B, *shape], network evaluations per sample, and frames [frames, B, *shape] on the way (or None)."""

    x: jax.Array
    evaluations: jax.Array
    frames: jax.Array | None = None


class Course(NamedTuple):
    """Sampling in parts: finish(advance(begin(), 0, transitions)) is all of it.

    begin() -> carry, a pytree of arrays; advance(carry, first, last) -> carry, after the transitions first .. last - 1;
    finish(carry) -> Sampled. Compiled with `first` and `last` as arguments, `advance` is one program for parts of any size, and
    the result is the same, bit for bit, however the transitions are parted.
    """

    begin: Callable[[], Any]
    advance: Callable[[Any, int | jax.Array, int | jax.Array], Any]
    finish: Callable[[Any], Sampled]
    transitions: int


def whole(course: Course) -> Sampled:
    """All parts at once."""
    return course.finish(course.advance(course.begin(), 0, course.transitions))


def sample_keys(seed: int | jax.Array, indices: jax.Array, addresses: str = BY_PURPOSE) -> jax.Array:
    """Keys [B] of the samples of these indices [B] under a seed. addresses: a run's, `run.config.addresses`."""
    return keys_of(seed, Purpose.SAMPLING, indices, addresses)


def noise_keys(keys: jax.Array, i: int | jax.Array, j: int | jax.Array) -> jax.Array:
    """Keys [B] of the j-th normal of transition i - 1 of each sample; i = j = 0 is the normal that it starts from."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, i), j))(keys)


def sample(
    sampler: Sampler,
    denoise: Denoiser,
    process: Process,
    times: jax.Array,
    keys: jax.Array,
    shape: tuple[int, ...],
    *,
    last: str = "denoise",
    x: jax.Array | None = None,
    frames: int = 0,
) -> Sampled:
    """Runs the sampler down the grid.

    times: [N], decreasing, N - 1 transitions. keys: [B], one per sample: sample i depends on keys[i] alone, and its j-th
    normal of step i is addressed by (key, i, j), whatever the batch. x [B, *shape]: the state at times[0]; by default a sample
    of the prior where times[0] is t_max, else sigma(times[0]) times the same normals: the noise of the marginal there.

    last says what is returned: "denoise", x0_hat at times[-1] (one more evaluation; on a table whose grid ends at 1/T this
    is the T-th step of the chain); "mean", the last transition without its noise; "stop", the state at times[-1].
    frames: how many states to return too, evenly spaced from the start to the result; the others are never stored.

    Raises ValueError for an unknown `last`, more frames than grid points, an x of another shape and, where times are concrete,
    for a grid that does not decrease within [0, t_max] or on which the sampler cannot start (needs_alpha, refuses).
    """
    return whole(sampling(sampler, denoise, process, times, keys, shape, last=last, x=x, frames=frames))


def sampling(
    sampler: Sampler,
    denoise: Denoiser,
    process: Process,
    times: jax.Array,
    keys: jax.Array,
    shape: tuple[int, ...],
    *,
    last: str = "denoise",
    x: jax.Array | None = None,
    frames: int = 0,
) -> Course:
    """`sample` in parts, with its arguments and errors."""
    check(sampler, process, times, last, frames)
    if x is not None and x.shape != (len(keys), *shape):
        raise ValueError(f"x must be of shape {[len(keys), *shape]}, one state per key, found {list(x.shape)}")

    def normal(i, j):
        return jax.vmap(lambda key: jax.random.normal(key, shape))(noise_keys(keys, i, j))

    def start():
        return start_std(process, times[0]) * normal(0, 0) if x is None else x

    def result(x, mean, evaluations):
        if last == "denoise":
            prediction = denoise(x, times[-1])
            return prediction.x0, evaluations + prediction.evaluations
        return mean if last == "mean" else x, evaluations

    return _course(sampler, denoise, process, times, start, normal, frames, result)


def start_std(process: Process, t: jax.Array) -> jax.Array:
    """The standard deviation of what a chain from t starts with: the prior's at t_max, below it that of the noise in x_t."""
    check_times(process, t=t)
    return jnp.where(t == process.t_max, process.prior_std, process.sigma(t))


def encode(
    sampler: Sampler, denoise: Denoiser, process: Process, times: jax.Array, x: jax.Array, *, frames: int = 0
) -> Sampled:
    """Runs a sampler that draws no noise up the grid, from a sample to the noise that it comes from.

    times: [N], increasing, from a time with sigma > 0. x [B, ...]: the states at times[0]; an image may stand for one where
    times[0] is small. DDIM inversion (Song et al. 2021, DDIM, section 4.3) with `ddim`, the probability-flow ODE with the
    others. `sample(..., times[::-1], x=encoded, last="stop")` decodes, up to the error of the steps. Raises ValueError for a
    sampler that draws noise and for a grid that does not increase within (0, t_max].
    """
    return whole(encoding(sampler, denoise, process, times, x, frames=frames))


def encoding(
    sampler: Sampler, denoise: Denoiser, process: Process, times: jax.Array, x: jax.Array, *, frames: int = 0
) -> Course:
    """`encode` in parts, with its arguments and errors."""
    check_encoder(sampler, process, times, frames)
    zeros = jnp.zeros_like(x)

    def result(x, mean, evaluations):  # noqa: ARG001 - the signature of every result
        return x, evaluations

    return _course(sampler, denoise, process, times, lambda: x, lambda i, j: zeros, frames, result)  # noqa: ARG005


def _course(sampler, denoise, process, times, start, normal, frames, result):
    """start() -> the state at times[0]; normal(i, j): the j-th noise of transition i - 1; result(x, mean, evaluations): the
    sample and the evaluations in the end."""
    n = len(times) - 1
    stops = np.rint(np.linspace(0, n, frames)).astype(int)  # the transitions before which a frame is taken; n: the end

    def begin():
        x = start()
        film = jnp.zeros((frames, *x.shape), x.dtype) if frames else None
        carry = x, x, sampler.init(x), jnp.zeros((), int), film
        return jax.tree.map(lambda array: jnp.asarray(array, array.dtype), carry)  # of types that no transition changes

    def through(step):
        def body(carry, transition):
            x, _, memory, evaluations, film = carry
            i, t, s = transition
            film = _record(film, stops, x, i)
            counted, in_loop, spent = count_evaluations(denoise)
            x, mean, memory = step(counted, process, x, memory, At(t, s, i, n, lambda j: normal(i + 1, j), in_loop))
            return (x, mean, memory, evaluations + spent(), film), None

        return body

    def advance(carry, first, last):
        known, done = concrete(first, last), 0
        for step, transitions in sampler.phases(times):
            count, body = len(transitions[0]), through(step)
            low, high = ((np if known else jnp).clip(end - done, 0, count) for end in (first, last))
            if known:
                carry, _ = jax.lax.scan(body, carry, tuple(part[low:high] for part in transitions))
            elif count:  # a scan has a length that is known; this loop makes one program for parts of any length
                of = lambda k, transitions=transitions: tuple(part[k] for part in transitions)  # noqa: E731
                carry = jax.lax.fori_loop(low, high, lambda k, carry, body=body, of=of: body(carry, of(k))[0], carry)
            done += count
        return carry

    def finish(carry):
        x, mean, _, evaluations, film = carry
        x, evaluations = result(x, mean, evaluations)
        return Sampled(x, evaluations, film if film is None else film.at[-1].set(x))

    return Course(begin, advance, finish, n)


def _record(film, stops, x, i):
    """Writes x into the film if a frame stops at transition i."""
    if film is None:
        return None
    slot = jnp.searchsorted(stops, i)
    put = lambda film: jax.lax.dynamic_update_index_in_dim(film, x, slot, 0)  # noqa: E731
    return jax.lax.cond(jnp.asarray(stops)[slot] == i, put, lambda film: film, film)


def check(sampler: Sampler, process: Process, times: jax.Array, last: str, frames: int = 0) -> None:
    """ValueError where `sample` cannot run down these times; what is traced is not looked at."""
    if last not in LASTS:
        raise ValueError(f"last must be one of {', '.join(LASTS)}, found {last!r}")
    _check_frames(times, frames)
    if last == "mean" and len(times) < 2:
        raise ValueError("last='mean' needs a transition: give a grid of at least two times")
    if not concrete(process, times):
        return
    with jax.ensure_compile_time_eval():
        grid = np.asarray(times)
        if grid.ndim != 1 or not len(grid) or not np.all(np.diff(grid) < 0):
            raise ValueError(f"times must be a strictly decreasing vector of at least one entry, found {grid}")
        check_times(process, times=times)
        if last == "denoise" and grid[-1] == 0 and process.sigma(0.0) == 0:
            raise ValueError("at time 0 nothing is left to denoise: end the grid earlier, or use last='mean' or 'stop'")
        _check_ends(sampler, process, times[0], times[-1])
        first = times[: min(len(times), 4)]
        if len(first) > 1 and (reason := sampler.refuses(_ratios(process, first))):
            raise ValueError(reason)


def check_encoder(sampler: Sampler, process: Process, times: jax.Array, frames: int = 0) -> None:
    """ValueError where `encode` cannot run up these times; what is traced is not looked at."""
    if concrete(sampler.noise_free) and not sampler.noise_free:
        raise ValueError(
            "this sampler draws noise, and an encoder must not: take one of the probability-flow ODE, or ddim, eta = 0"
        )
    _check_frames(times, frames)
    if not concrete(process, times):
        return
    with jax.ensure_compile_time_eval():
        grid = np.asarray(times)
        if grid.ndim != 1 or not len(grid) or not np.all(np.diff(grid) > 0):
            raise ValueError(f"times must be a strictly increasing vector of at least one entry, found {grid}")
        check_times(process, times=times)
        if process.sigma(times[0]) == 0:
            raise ValueError(f"times must begin where sigma > 0, found sigma({grid[0]:g}) = 0: take a later first time")
        _check_ends(sampler, process, times[-1], times[0])


def _check_frames(times, frames):
    if frames and not 2 <= frames <= len(times):
        raise ValueError(f"frames must be 0 or from 2 to the number of grid points ({len(times)}), found {frames}")


def _ratios(process, times):
    """sigma / alpha at these times, as numbers; infinite where alpha = 0."""
    return [float(s) / float(a) if a else float("inf") for s, a in zip(process.sigma(times), process.alpha(times), strict=True)]


def _check_ends(sampler, process, latest, earliest):
    if sampler.needs_alpha and process.alpha(latest) == 0:
        raise ValueError(f"{sampler.needs_alpha}, and alpha({float(latest):g}) = 0: take a grid without it, or another sampler")
    if sampler.needs_sigma and process.sigma(earliest) == 0:
        raise ValueError(
            f"{sampler.needs_sigma}, and sigma({float(earliest):g}) = 0: take a grid without it, or another sampler"
        )
