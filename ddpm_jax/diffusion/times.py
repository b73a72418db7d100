"""Distributions of the training time t. Each draws one t per example from that example's key."""

from collections.abc import Callable

import jax

from ddpm_jax.diffusion.processes import Process


def uniform(process: Process, keys: jax.Array) -> jax.Array:
    """t uniform: on n/T, n = 1..T, for a table; on [t_min, t_max] where time is continuous. keys: [B]. Returns [B]."""
    if process.num_steps:
        draw = jax.vmap(lambda key: jax.random.randint(key, (), 1, process.num_steps + 1))
        return draw(keys) / process.num_steps
    return jax.vmap(lambda key: jax.random.uniform(key, (), minval=process.t_min, maxval=process.t_max))(keys)


TIMES: dict[str, Callable] = {"uniform": uniform}
