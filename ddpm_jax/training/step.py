"""The training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.training.parallel import AXIS
from ddpm_jax.training.tasks import Task

LEVELS = 10
INIT, TRAIN = range(2)  # the first part of a random number's address, after the seed


class State(NamedTuple):
    """All that training changes. `step` counts the updates made."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any


def init_state(task: Task, optimizer: optax.GradientTransformation, seed: int) -> State:
    """The state before the first step."""
    params = task.init(jax.random.fold_in(jax.random.key(seed), INIT))
    return State(jnp.asarray(0), params, optimizer.init(params), jax.tree.map(jnp.copy, params))


def run_once(f: Callable) -> Any:
    """f(), compiled for a single run: on CPU without LLVM's optimisations.

    That initialises a tiny U-Net in 2 seconds of processor time instead of 15 (AMD EPYC Zen 4, jax 0.10.2, 2026-11-20).
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(f, compiler_options=options)()


def update_ema(ema, params, decay: float, step: jax.Array):
    """d ema + (1 - d) params, with d = min(decay, (1 + step) / (10 + step)), step counted from 0.

    The gradual start keeps the initial parameters out of the averages of short runs.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - d) * (new - old), ema, params)


def make_step(task: Task, optimizer: optax.GradientTransformation, *, seed: int, ema_decay: float) -> Callable:
    """The function that one device runs: step(state, data, indices) -> (state, metrics).

    data: {name: [N, ...]}, the examples that the indices speak of. indices [K, B / devices]: this device's rows of the batches
    of K steps. metrics: of each step, [K] each; level_loss and level_count [K, LEVELS], the sum and the number of losses per
    tenth of task.levels. The random numbers of an example are addressed by (seed, step, place in the global batch).
    """

    def one_step(state: State, data, indices):
        local = indices.shape[0]
        places = jax.lax.axis_index(AXIS) * local + jnp.arange(local)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), TRAIN), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        batch = {name: array[indices] for name, array in data.items()}

        def mean_loss(params):
            losses, levels = task.loss(params, batch, keys)
            return losses.mean(), (losses, levels)

        (loss, (losses, levels)), gradients = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        loss, gradients = jax.lax.pmean((loss, gradients), AXIS)
        first, last = task.levels
        bins = jnp.clip((levels - first) / (last - first) * LEVELS, 0, LEVELS - 1).astype(int)
        bins = jax.nn.one_hot(bins, LEVELS)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = update_ema(state.ema, params, ema_decay, state.step)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), "param_norm": optax.tree.norm(params)}
        metrics |= jax.lax.psum({"level_loss": losses @ bins, "level_count": bins.sum(0)}, AXIS)
        return State(state.step + 1, params, opt_state, ema), metrics

    def step(state, data, indices):
        if indices.shape[0] == 1:  # no scan: on CPU, gradients of convolutions are many times slower inside one
            state, metrics = one_step(state, data, indices[0])
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda carry, rows: one_step(carry, data, rows), state, indices)

    return step
