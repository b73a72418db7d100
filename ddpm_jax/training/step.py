"""The training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.diffusion.keys import BY_PURPOSE, Purpose, key_of
from ddpm_jax.diffusion.times import Examples
from ddpm_jax.tasks.task import Task
from ddpm_jax.training.averages import decayed_average, power_average
from ddpm_jax.training.parallel import AXIS

LEVELS = 10


class State(NamedTuple):
    """A training's state. `step` counts the steps made, refused updates among them; `ema` has one average per decay,
    then one per width.

    history: what the task remembers of the steps before (`Task`); () where it is nothing. frozen: parameters that no step
    changes (`Task`); () where there are none.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: tuple[Any, ...]
    history: Any = ()
    frozen: Any = ()


def init_state(
    task: Task,
    optimizer: optax.GradientTransformation,
    seed: int,
    averages: int,
    params: Any = None,
    *,
    addresses: str = BY_PURPOSE,
) -> State:
    """The state before the first step without frozen parameters. `averages` copies of the others begin the averages.

    params: the parameters to start from; by default the task's own. addresses: of random numbers, the config's.
    """
    params = task.init(key_of(seed, Purpose.INIT, addresses)) if params is None else params
    ema = tuple(jax.tree.map(jnp.copy, params) for _ in range(averages))
    return State(jnp.asarray(0), params, optimizer.init(params), ema, jax.tree.map(jnp.copy, task.history))


def run_once(f: Callable) -> Any:
    """f(), compiled for a single run: on CPU without LLVM's optimisations.

    That initialises a tiny U-Net in 2 seconds of processor time instead of 15 (AMD EPYC Zen 4, jax 0.10.2, 2026-11-20).
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
    return jax.jit(f, compiler_options=options)()


def make_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decays: tuple[float, ...],
    ema_widths: tuple[float, ...] = (),
    micro_batches: int = 1,
    addresses: str = BY_PURPOSE,
) -> Callable:
    """The function that one device runs: step(state, data, indices) -> (state, metrics).

    data: {name: [N, ...]}, the examples that the indices speak of. indices [K, B / devices]: this device's rows of the batches
    of K steps. metrics: of each step, [K] each; level_loss and level_count [K, LEVELS], the sum and the number of losses per
    tenth of task.levels. The random numbers of an example are addressed by (seed, step, place in the global batch),
    see `diffusion.keys`; addresses: the config's.

    The gradient of the mean loss over the device's rows is summed over `micro_batches` equal parts of them, in a loop, so that
    one part at a time is in memory; on CPU without a loop, which saves no memory. An update is refused where the loss, the
    gradient or the updated parameters are not finite: then only `step` advances, and the metrics tell.
    """

    def gradient_of(state, data, indices, examples):
        """The gradient of the mean loss, and (losses [B], levels [B], seen) of this device's rows."""

        def add(total, part):
            indices, keys, places = part
            batch = {name: array[indices] for name, array in data.items()}

            def mean_loss(params):
                rows = Examples(keys, places, examples.total)
                losses, levels, seen = task.loss(params, state.frozen, batch, rows, state.history)
                return losses.mean(), (losses, levels, seen)

            gradients, seen = jax.grad(mean_loss, has_aux=True)(state.params)
            return jax.tree.map(jnp.add, total, gradients), seen

        rows = (indices, examples.keys, examples.places)
        parts = jax.tree.map(lambda rows: rows.reshape(micro_batches, -1), rows)
        no_loop = micro_batches == 1 or jax.default_backend() == "cpu"  # where gradients of convolutions are slow in loops
        total, seen = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), parts, unroll=0 if no_loop else 1)
        seen = jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), seen)
        return jax.tree.map(lambda x: x / micro_batches, total), seen

    def one_step(state: State, data, indices):
        local = indices.shape[0]
        places = jax.lax.axis_index(AXIS) * local + jnp.arange(local)
        key = jax.random.fold_in(key_of(seed, Purpose.TRAINING, addresses), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places)
        examples = Examples(keys, places, jax.lax.axis_size(AXIS) * local)
        gradients, (losses, levels, seen) = gradient_of(state, data, indices, examples)
        seen = jax.tree.map(lambda rows: jax.lax.all_gather(rows, AXIS).reshape(-1, *rows.shape[1:]), seen)
        loss, gradients = jax.lax.pmean((losses.mean(), gradients), AXIS)
        first, last = task.levels
        bins = jnp.clip((levels - first) / (last - first) * LEVELS, 0, LEVELS - 1).astype(int)
        bins = jax.nn.one_hot(bins, LEVELS)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        kinds = [(decayed_average, decay) for decay in ema_decays] + [(power_average, width) for width in ema_widths]
        ema = tuple(update(old, params, told, state.step) for old, (update, told) in zip(state.ema, kinds, strict=True))
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), "param_norm": optax.tree.norm(params)}
        finite = jnp.isfinite(jnp.stack(list(metrics.values()))).all()
        metrics |= jax.lax.psum({"level_loss": losses @ bins, "level_count": bins.sum(0)}, AXIS)
        step = state.step + 1
        new = State(step, params, opt_state, ema, task.remember(state.history, seen))
        old = state._replace(step=step, frozen=())
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        return new._replace(frozen=state.frozen), metrics

    def step(state, data, indices):
        if indices.shape[0] == 1:  # no loop here either
            state, metrics = one_step(state, data, indices[0])
            return state, jax.tree.map(lambda value: value[None], metrics)
        return jax.lax.scan(lambda carry, rows: one_step(carry, data, rows), state, indices)

    return step
