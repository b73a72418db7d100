"""Distributions of the training time t.

Each is a `TimestepSampler`: examples of the global batch draw one t each, with the weight that makes a mean over them that over
uniform t where that is the point of the distribution, and 1 elsewhere. One that learns has a history, part of the state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.process import check_times


class Examples(NamedTuple):
    """Examples of a batch: their keys [B], their places [B] in the global batch, and its size."""

    keys: jax.Array
    places: jax.Array
    total: int

    def of(self, purpose: int) -> jax.Array:
        """Keys [B] for one of several purposes."""
        return jax.vmap(jax.random.fold_in, (0, None))(self.keys, purpose)


class TimestepSampler(NamedTuple):
    """draw(process, examples, history) -> (t [B], weights [B]): what is drawn depends on an example's key and place alone.

    init(process) -> history, a pytree of arrays. update(history, t [N], losses [N]) -> history, with the times and the losses,
    before they are weighted, of the whole global batch in its order; None where there is nothing to learn.
    """

    draw: Callable
    init: Callable = lambda process: ()  # noqa: ARG005
    update: Callable | None = None


class History(NamedTuple):
    """Of each of the T times the losses that were kept last, [T, kept] in a ring, and the number that there were, [T]."""

    losses: Any
    counts: Any


def _unweighted(times):
    """A `TimestepSampler` of a function times(process, examples) -> t."""

    def draw(process, examples, history):  # noqa: ARG001 - the signature of every draw
        t = times(process, examples)
        return t, jnp.ones_like(t)

    return TimestepSampler(draw)


def _at(process, u, t_min):
    """The time at the share u [B], in [0, 1], of the span of training times: one of n/T, n = 1..T, on a table."""
    if steps := process.num_steps:
        return jnp.clip(1 + jnp.floor(steps * u), 1, steps) / steps
    low = process.t_min.training if t_min is None else t_min
    check_times(process, t_min=low)
    return low + (process.t_max - low) * u


def uniform(*, t_min: jax.Array | None = None) -> TimestepSampler:
    """t uniform: on n/T, n = 1..T, for a table; on [t_min, t_max] where time is continuous.

    t_min: by default the process's for training; tables do not look at it.
    """

    def times(process, examples):
        if steps := process.num_steps:
            return jax.vmap(lambda key: jax.random.randint(key, (), 1, steps + 1))(examples.keys) / steps
        return _at(process, jax.vmap(jax.random.uniform)(examples.keys), t_min)

    return _unweighted(times)


def stratified(*, t_min: jax.Array | None = None) -> TimestepSampler:
    """t as in `uniform`, but example j of B in the j-th of B equal parts of the span: at its share (j + u) / B, u uniform.

    The mean of the loss over a batch varies less. (Kingma et al. 2021, appendix I.1, with one u for all.)
    """

    def times(process, examples):
        u = jax.vmap(jax.random.uniform)(examples.keys)
        return _at(process, (examples.places + u) / examples.total, t_min)

    return _unweighted(times)


def logit_normal(*, location: float = 0.0, scale: float = 1.0, t_min: jax.Array | None = None) -> TimestepSampler:
    """logit(u) ~ N(location, scale^2) for the share u of the span at which t stands (Esser et al. 2024, SD3, section 3.1).

    The span is that of `uniform`; on a table u falls into one of T equal parts.
    """

    def times(process, examples):
        normal = jax.vmap(jax.random.normal)(examples.keys)
        return _at(process, jax.nn.sigmoid(location + scale * normal), t_min)

    return _unweighted(times)


def log_normal(*, mean: float = -1.2, std: float = 1.2) -> TimestepSampler:
    """log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1). Continuous time only, else ValueError.

    Draws outside [t_min, t_max] of the process are put at its ends (for `edm`, draws beyond 4 standard deviations).
    """

    def times(process, examples):
        if process.num_steps:
            raise ValueError("log_normal times are continuous, and a table has none between its steps: use uniform")
        log_ratio = mean + std * jax.vmap(jax.random.normal)(examples.keys)
        return jnp.clip(process.inverse_log_snr(-2 * log_ratio), process.t_min.training, process.t_max)

    return _unweighted(times)


def importance(*, kept: int = 10, uniform_share: float = 0.001) -> TimestepSampler:
    """t = n/T with p_n proportional to sqrt(E[L_n^2]), weight 1 / (T p_n) (Nichol & Dhariwal 2021, section 3.3 and code).

    E[L_n^2] is over the last `kept` losses at n. p is uniform until every n has had as many, some 780 steps of batch 128 for
    T = 4000, and where all of these are 0; else it is mixed with `uniform_share` of the uniform distribution. Tables only, else
    ValueError.
    """

    def init(process):
        if not process.num_steps:
            raise ValueError("importance times learn the loss at each step of a table, and time is continuous: use uniform")
        return History(jnp.zeros((process.num_steps, kept)), jnp.zeros(process.num_steps, int))

    def draw(process, examples, history):
        steps = process.num_steps
        root = jnp.sqrt(jnp.square(history.losses).mean(1))
        total = root.sum()
        p = (1 - uniform_share) * root / jnp.where(total > 0, total, 1.0) + uniform_share / steps
        p = jnp.where((history.counts >= kept).all() & (total > 0), p, 1 / steps)
        index = jax.vmap(lambda key: jax.random.categorical(key, jnp.log(p)))(examples.keys)
        return (index + 1) / steps, 1 / (steps * p[index])

    def update(history, t, losses):
        """As if one after the other; where there are more than `kept` at one t, the last of them."""
        steps = len(history.counts)
        index = jnp.rint(t * steps).astype(int) - 1
        same = index[:, None] == index
        earlier = jnp.tril(same, -1).sum(1)
        slot = jnp.where(same.sum(1) - earlier > kept, kept, (history.counts[index] + earlier) % kept)  # kept: out of the ring
        return History(history.losses.at[index, slot].set(losses, mode="drop"), history.counts.at[index].add(1))

    return TimestepSampler(draw, init, update)


TIMES: dict[str, Callable[..., TimestepSampler]] = {
    "uniform": uniform,
    "stratified": stratified,
    "logit_normal": logit_normal,
    "log_normal": log_normal,
    "importance": importance,
}
