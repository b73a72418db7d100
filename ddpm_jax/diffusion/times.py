"""Distributions of the training time t. Each draws one t per example from that example's key."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.process import Process


def uniform(process: Process, keys: jax.Array, *, t_min: jax.Array | None = None) -> jax.Array:
    """t uniform: on n/T, n = 1..T, for a table; on [t_min, t_max] where time is continuous. keys: [B]. Returns [B].

    t_min: by default the process's for training; tables do not look at it.
    """
    if process.num_steps:
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, process.num_steps + 1))
        return draw(keys) / process.num_steps
    low = process.t_min.training if t_min is None else t_min
    return low + (process.t_max - low) * jax.vmap(jax.random.uniform)(keys)


def log_normal(process: Process, keys: jax.Array, *, mean: float = -1.2, std: float = 1.2) -> jax.Array:
    """log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1). keys: [B]. Returns [B]. Continuous time only.

    Draws outside [t_min, t_max] of the process are put at its ends (for `edm`, draws beyond 4 standard deviations).
    """
    if process.num_steps:
        raise ValueError("log_normal times are continuous, and a table has none between its steps: use uniform")
    log_ratio = mean + std * jax.vmap(jax.random.normal)(keys)
    return jnp.clip(process.inverse_log_snr(-2 * log_ratio), process.t_min.training, process.t_max)


TIMES: dict[str, Callable] = {"uniform": uniform, "log_normal": log_normal}
