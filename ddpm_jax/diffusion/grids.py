"""Time grids for samplers: N decreasing times, from the first at which the network is evaluated to the last.

N points cost N evaluations with samplers that take one per step: N - 1 transitions and the final denoising. On a table a grid
holds integers n as n/T: where a formula gives none, or one twice, it moves to the nearest free ones. On continuous time it may
be made of traced parameters. t_min: by default the process's for sampling; a table ends at 1/T or where its formula does.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from ddpm_jax.diffusion.process import Process, check_times, concrete


def uniform(process: Process, *, steps: int, t_min: jax.Array | None = None) -> jax.Array:
    """`steps` times from t_max to t_min, both included; on a table n = 1 + round(k (T - 1) / (N - 1))."""
    if process.num_steps:
        return _on_table(process, 1 + np.rint(np.linspace(process.num_steps - 1, 0, steps)))
    return _evenly(process, np.linspace(0, 1, steps), t_min)


def leading(process: Process, *, steps: int, t_min: jax.Array | None = None) -> jax.Array:
    """Evenly spaced, t_min included and t_max not: on a table n = 1 + floor(k T / N) (Song et al. 2021, DDIM, appendix D.2).

    Their code, like diffusers', has k floor(T / N), which is the same where N divides T; elsewhere 501 of 1000 would begin
    amid the chain. ValueError for one point, which would be without noise.
    """
    if steps == 1:
        raise ValueError("the leading grid of one point has the data's end alone, where no sample can begin: use trailing")
    if process.num_steps and steps:
        return _on_table(process, 1 + np.arange(steps)[::-1] * process.num_steps // steps)
    return _evenly(process, np.arange(1, steps + 1) / steps, t_min)


def trailing(process: Process, *, steps: int, t_min: jax.Array | None = None) -> jax.Array:
    """Evenly spaced, t_max included and t_min not: on a table n = T - round(k T / N) (Lin et al. 2024, table 2)."""
    if process.num_steps:
        return _on_table(process, np.arange(steps, 0, -1) * process.num_steps / steps)
    return _evenly(process, np.arange(steps) / steps, t_min)


def quadratic(process: Process, *, steps: int) -> jax.Array:
    """n_i = 1 + floor(i^2 0.8 T / (N - 1)^2), i = 0..N-1, dense near the data (DDIM, appendix D.2). Tables only.

    Ends at 0.8 T as the published code does, where more noise is left in x than the start assumes.
    """
    _needs_table(process, "quadratic")
    published = 1 + np.floor(np.linspace(np.sqrt(0.8 * process.num_steps), 0, steps) ** 2 + 1e-9)
    return _on_table(process, published)


def sections(process: Process, *, sections: str) -> jax.Array:
    """Step counts per section of the chain, from the data end: "10,10,15,15,15"; or "ddim50" (guided-diffusion). Tables only.

    The T steps are cut into as many sections as there are counts, and each gets its count, evenly spaced with both ends.
    "ddimN": n = 1 + k c for the integer c that gives N steps.
    """
    _needs_table(process, "sections")
    total, counts = process.num_steps, _counts(sections)
    if sections.strip().startswith("ddim"):
        strides = [c for c in range(1, total) if len(range(0, total, c)) == counts[0]]
        if not strides:
            raise ValueError(f"no integer stride takes {counts[0]} of {total} steps, as sections={sections!r} asks")
        return _on_table(process, 1 + np.arange(0, total, strides[0])[::-1])
    chosen, start = [], 0
    for part, count in enumerate(counts):
        size = total // len(counts) + (part < total % len(counts))
        if count > size:
            raise ValueError(f"sections={sections!r} asks for {count} of the {size} steps of section {part + 1}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        chosen += [1 + start + round(position) for position in np.cumsum([0.0] + [stride] * (count - 1))]
        start += size
    return _on_table(process, np.array(chosen[::-1]))


def _counts(sections):
    words = sections.strip().removeprefix("ddim").split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words) or ("ddim" in sections and len(words) > 1):
        raise ValueError(f'sections must be counts, as "10,10,15,15,15", or "ddim50", found {sections!r}')
    return [int(word) for word in words]


def log_snr(process: Process, *, steps: int, t_min: jax.Array | None = None) -> jax.Array:
    """Evenly spaced in log-SNR from t_max to t_min. Needs alpha(t_max) > 0."""
    first, last = _ends(process, t_min)
    levels = _between(process.log_snr(first), process.log_snr(last), np.linspace(0, 1, steps))
    return _at_levels(process, levels, first, last)


def karras(process: Process, *, steps: int, t_min: jax.Array | None = None, rho: float = 7.0) -> jax.Array:
    """z = sigma / alpha evenly spaced in z^(1/rho) from t_max to t_min (Karras et al. 2022, eq. 5). Needs alpha(t_max) > 0."""
    first, last = _ends(process, t_min)
    roots = [jnp.exp(-0.5 * process.log_snr(end) / rho) for end in (first, last)]
    return _at_levels(process, -2 * rho * jnp.log(_between(*roots, np.linspace(0, 1, steps))), first, last)


def polyexponential(process: Process, *, steps: int, t_min: jax.Array | None = None, rho: float = 1.0) -> jax.Array:
    """log(sigma / alpha) at its lower end plus its range times u^rho, u evenly from 1 to 0; rho = 1 is `log_snr`.

    Crowson, k-diffusion, get_sigmas_polyexponential. Needs alpha(t_max) > 0.
    """
    first, last = _ends(process, t_min)
    shares = 1 - jnp.asarray(np.linspace(1, 0, steps), float) ** rho
    return _at_levels(process, _between(process.log_snr(first), process.log_snr(last), shares), first, last)


def beta(
    process: Process, *, steps: int, t_min: jax.Array | None = None, beta_a: float = 0.6, beta_b: float = 0.6
) -> jax.Array:
    """t at the quantiles of a beta distribution, evenly from 1 to 0: dense at both ends for a, b < 1 (Lee et al. 2024).

    beta_a = beta_b = 1 is `uniform`. ValueError for those that are not positive.
    """
    if not (beta_a > 0 and beta_b > 0):
        raise ValueError(f"beta_a and beta_b must be positive, found {beta_a} and {beta_b}")
    quantiles = scipy.special.betaincinv(beta_a, beta_b, np.linspace(1, 0, steps))
    if process.num_steps:
        return _on_table(process, 1 + (process.num_steps - 1) * quantiles)
    return _evenly(process, 1 - quantiles, t_min)


def explicit(process: Process, *, times: tuple[float, ...]) -> jax.Array:
    """These times; on a table, multiples of 1/T within 1e-3 / T."""
    grid = np.asarray(times, np.float64)
    if grid.ndim != 1 or not len(grid):
        raise ValueError(f"an explicit grid needs at least one time, found {times}")
    check_times(process, times=grid)
    if process.num_steps:
        total = process.num_steps
        nearest = np.rint(grid * total)
        off = np.abs(grid * total - nearest) > 1e-3
        if off.any():
            raise ValueError(f"times on a table of {total} must be multiples of 1/{total}, found {grid[off][0]}")
        grid = nearest / total
    return jnp.asarray(grid, float)


def _needs_table(process, name):
    if not process.num_steps:
        raise ValueError(f"the {name} grid is made of a table's integers: use another grid where time is continuous")


def _ends(process, t_min):
    """t_max and t_min, for a grid that both of them bound."""
    if process.num_steps:
        t_min = 1 / process.num_steps
    t_min = process.t_min.sampling if t_min is None else t_min
    check_times(process, t_min=t_min)
    return process.t_max, jnp.asarray(t_min, float)


def _between(first, last, fractions):
    if not len(fractions):
        raise ValueError("a grid needs at least one point, found steps = 0")
    fractions = jnp.asarray(fractions, float)
    return (1 - fractions) * first + fractions * last


def _evenly(process, fractions, t_min):
    return _between(*_ends(process, t_min), fractions)


def _at_levels(process, levels, first, last):
    """The times of these log-SNRs, the ends exactly."""
    if concrete(process, first):
        with jax.ensure_compile_time_eval():
            if float(process.alpha(first)) == 0:
                raise ValueError("log-SNR is -inf at t_max, where alpha = 0: use a grid in t (uniform, leading, trailing)")
    times = process.inverse_log_snr(levels)
    if process.num_steps:
        return _on_table(process, times * process.num_steps)
    times = times.at[-1].set(last) if len(times) > 1 else times
    return times.at[0].set(first)


def _on_table(process, positions):
    """n/T for the nearest integers n, moved up where one comes twice and down again where they would go beyond T."""
    if not 1 <= len(positions) <= process.num_steps:
        raise ValueError(f"cannot place {len(positions)} different steps on a table of {process.num_steps}")
    return _placed(jnp.asarray(positions, float), process.num_steps)


@partial(jax.jit, static_argnums=1)
def _placed(positions, total):
    rank = jnp.arange(len(positions))[::-1]
    nearest = jnp.clip(jnp.round(positions), 1, total) - rank
    integers = jax.lax.cummax(nearest[::-1])[::-1] + rank
    return jnp.minimum(integers, total - rank[::-1]) / total


GRIDS: dict[str, Callable[..., jax.Array]] = {
    "uniform": uniform,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
    "sections": sections,
    "log_snr": log_snr,
    "karras": karras,
    "polyexponential": polyexponential,
    "beta": beta,
    "explicit": explicit,
}
