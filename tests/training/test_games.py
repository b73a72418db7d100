"""Two players in one loss per example."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.tasks.task import Task
from ddpm_jax.training import parallel
from ddpm_jax.training.step import init_state, make_step


@pytest.mark.parametrize("devices", [1, 4])
def test_one_backward_pass_gives_both_players_their_own_gradient(devices):
    """f(a, b) = a b + a^2 / 2 - b^2 / 2, x and y its players: a goes down f, b up, at once (simultaneous descent).

    Each term sees the other's parameters under stop_gradient. Steps of 0.1 for one player and of 0.3 for the other.
    """
    stop = jax.lax.stop_gradient

    def f(a, b, x):
        return a * b * x + a**2 / 2 - b**2 / 2

    def loss(params, frozen, batch, examples, history):  # noqa: ARG001
        a, b = params["a"], params["b"]
        losses = f(a, stop(b), batch["image"]) - f(stop(a), b, batch["image"])
        return losses, jnp.zeros_like(losses), ()

    start = {"a": jnp.asarray(1.0), "b": jnp.asarray(-2.0)}
    task = Task(lambda _: start, loss, None, None, (0.0, 1.0), None, None, None, None)
    optimizer = optax.multi_transform({"a": optax.sgd(0.1), "b": optax.sgd(0.3)}, {"a": "a", "b": "b"})
    state = parallel.replicate(init_state(task, optimizer, 0, 0), jax.devices()[:devices])
    one_device = make_step(task, optimizer, seed=0, ema_decays=())
    step = parallel.over_devices(one_device, jax.devices()[:devices], (None, None, 0), (None, None))
    data = {"image": np.arange(4, dtype=np.float32)}  # of mean 1.5
    rows = parallel.split(np.arange(4, dtype=np.int32)[None], jax.devices()[:devices], axis=1)
    for _ in range(3):
        state, _ = step(state, data, rows)
    a, b = 1.0, -2.0
    for _ in range(3):
        a, b = a - 0.1 * (1.5 * b + a), b + 0.3 * (1.5 * a - b)
    np.testing.assert_allclose([state.params["a"], state.params["b"]], [a, b], rtol=1e-5)
