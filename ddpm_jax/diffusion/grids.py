"""Time grids for samplers: decreasing times, from the first at which the network is evaluated to the last.

Grids on a table are built from integers n and hold n/T. N points cost N evaluations with samplers that take one per step:
N - 1 transitions and the final denoising.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.processes import Process


def uniform(process: Process, steps: int) -> jax.Array:
    """`steps` times from t_max to t_min, evenly spaced (on a table, each rounded to the nearest n). All n where steps = T."""
    if process.num_steps:
        return _on_table(process, np.rint(np.linspace(process.num_steps, 1, steps)), steps)
    return process.t_max + jnp.linspace(0, 1, steps) * (process.t_min - process.t_max)


def quadratic(process: Process, steps: int) -> jax.Array:
    """n_i = 1 + floor(i^2 0.8 T / (N - 1)^2), i = 0..N-1, dense near the data (Song et al. 2021, DDIM, appendix D.2).

    Ends at 0.8 T as the published code does, where more noise is left in x than the start assumes. Points that coincide
    there move up to the next free n. Tables only.
    """
    if not process.num_steps:
        raise ValueError("the quadratic grid is made of a table's integers: use another grid where time is continuous")
    published = 1 + np.floor(np.linspace(np.sqrt(0.8 * process.num_steps), 0, steps) ** 2 + 1e-9)
    indices = np.arange(steps)
    increasing = np.maximum.accumulate(published[::-1] - indices) + indices
    return _on_table(process, increasing[::-1], steps)


def _on_table(process, decreasing, steps):
    if not 1 <= steps <= process.num_steps or decreasing[0] > process.num_steps or np.any(np.diff(decreasing) > -1):
        raise ValueError(f"cannot place {steps} different steps of this grid on a table of {process.num_steps}")
    return jnp.asarray(decreasing / process.num_steps, float)


GRIDS: dict[str, Callable] = {"uniform": uniform, "quadratic": quadratic}
