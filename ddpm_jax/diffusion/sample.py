"""The one scan that all fixed-grid samplers run in."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.predictions import Denoiser
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.diffusion.samplers import At, Sampler

LASTS = ("denoise", "mean", "stop")


def sample_keys(seed: int | jax.Array, indices: jax.Array) -> jax.Array:
    """Keys [B] of the samples of these indices [B] under a seed."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)


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
    progress: Callable | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the sampler down the grid. Returns (samples [B, *shape], network evaluations per sample).

    times: [N], decreasing, N - 1 transitions. keys: [B], one per sample: sample i depends on keys[i] alone, and its j-th
    normal of step i is addressed by (key, i, j), whatever the batch. x: the state at times[0]; by default prior_std times a
    normal that does not depend on the grid.

    last says what is returned: "denoise", x0_hat at times[-1] (one more evaluation; on a table whose grid ends at 1/T this
    is the T-th step of the chain); "mean", the last transition without its noise; "stop", the state at times[-1].
    progress: called on the host with the number of transitions done, some twenty times; it keeps the program out of the
    persistent compilation cache.

    Raises ValueError for an unknown `last` and, where times are concrete, for a grid that does not decrease within [0, t_max].
    """
    _check(process, times, last)
    n = len(times) - 1

    def normal(i, j):
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), j), shape))(keys)

    def body(carry, inputs):
        x, _, memory, evaluations = carry
        i, t, s = inputs
        spent = []

        def counted(x, t):
            prediction = denoise(x, t)
            spent.append(prediction.evaluations)
            return prediction

        x, mean, memory = sampler.step(counted, process, x, memory, At(t, s, i, n, lambda j: normal(i + 1, j)))
        if progress is not None:
            every = max(1, n // 20)
            jax.lax.cond((i + 1) % every == 0, lambda: jax.debug.callback(progress, i + 1), lambda: None)
        return (x, mean, memory, evaluations + sum(spent)), None

    if x is None:
        x = process.prior_std * normal(0, 0)
    carry = (x, x, sampler.init(x), jnp.asarray(0))
    (x, mean, _, evaluations), _ = jax.lax.scan(body, carry, (jnp.arange(n), times[:-1], times[1:]))
    if last == "mean":
        return mean, evaluations
    if last == "stop":
        return x, evaluations
    prediction = denoise(x, times[-1])
    return prediction.x0, evaluations + prediction.evaluations


def _check(process, times, last):
    if last not in LASTS:
        raise ValueError(f"last must be one of {', '.join(LASTS)}, found {last!r}")
    if last == "mean" and len(times) < 2:
        raise ValueError("last='mean' needs a transition: give a grid of at least two times")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((process, times))):
        return
    with jax.ensure_compile_time_eval():
        grid, t_max = np.asarray(times), float(process.t_max)
        nothing_left = last == "denoise" and len(grid) and grid[-1] == 0 and process.sigma(0.0) == 0
    if grid.ndim != 1 or not len(grid) or np.any(np.diff(grid) >= 0):
        raise ValueError(f"times must be a strictly decreasing vector of at least one entry, found {grid}")
    if grid[-1] < 0 or grid[0] > t_max:
        raise ValueError(f"times must lie in [0, t_max = {t_max}], found {grid[0]} to {grid[-1]}")
    if nothing_left:
        raise ValueError("at time 0 nothing is left to denoise: end the grid earlier, or use last='mean' or 'stop'")
