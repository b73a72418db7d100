import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.construct import construct
from ddpm_jax.errors import UserError
from ddpm_jax.training import parallel
from ddpm_jax.training.optimizers import OPTIMIZERS, adam, learning_rate_schedule
from ddpm_jax.training.step import State, init_state, make_step, run_once, update_ema
from ddpm_jax.training.tasks import Task, build


def run_steps(config, source, count, devices, per_call=1):
    """The state after `count` steps on the first `devices` devices, and each step's metrics [count]."""
    devices = jax.devices()[:devices]
    task = build(config, (8, 8, 1))
    optimizer = construct(OPTIMIZERS, config.optim)
    state = parallel.replicate(run_once(lambda: init_state(task, optimizer, config.seed)), devices)
    data = parallel.replicate(source.arrays, devices)
    step = parallel.over_devices(
        make_step(task, optimizer, seed=config.seed, ema_decay=config.ema.decay), devices, (None, None, 0), (None, None), (0,)
    )
    collected = []
    for k in range(0, count, per_call):
        rows = np.stack([np.random.default_rng(i).permutation(48)[:16] for i in range(k, k + per_call)]).astype(np.int32)
        state, metrics = step(state, data, parallel.split(rows, devices, axis=1))
        collected.append(jax.device_get(metrics))
    return jax.device_get(state), jax.tree.map(lambda *m: np.concatenate(m), *collected)


def test_the_same_on_any_number_of_devices(tiny_config, tiny_source):
    """One device and four: the same noise for each example, so only the order of the sums differs."""
    one, metrics_one = run_steps(tiny_config, tiny_source, 3, devices=1)
    four, metrics_four = run_steps(tiny_config, tiny_source, 3, devices=4)
    np.testing.assert_allclose(metrics_one["loss"], metrics_four["loss"], rtol=1e-5)
    # Adam divides by the root of the second moment, which enlarges rounding where gradients vanish.
    chex.assert_trees_all_close(one.params, four.params, atol=2e-4)


def test_twice_the_same_bits(tiny_config, tiny_source):
    a, metrics_a = run_steps(tiny_config, tiny_source, 3, devices=1)
    b, metrics_b = run_steps(tiny_config, tiny_source, 3, devices=1)
    chex.assert_trees_all_equal((a, metrics_a), (b, metrics_b))


def test_several_steps_per_call_are_the_same_steps(tiny_config, tiny_source):
    one, metrics_one = run_steps(tiny_config, tiny_source, 4, devices=2)
    scanned, metrics_scanned = run_steps(tiny_config, tiny_source, 4, devices=2, per_call=4)
    assert scanned.step == one.step == 4
    np.testing.assert_allclose(metrics_one["loss"], metrics_scanned["loss"], rtol=1e-5)
    chex.assert_trees_all_close(one.params, scanned.params, atol=2e-4)


def test_randomness_is_addressed_by_seed_step_and_example():
    """A spy task whose loss is a normal of its key: it changes with seed, step and place, and not with the devices."""

    def losses(seed, step, devices):
        seen = []

        def loss(params, batch, keys):
            normals = jax.vmap(jax.random.normal)(keys)
            jax.debug.callback(lambda place, x: seen.append((int(place), np.asarray(x))), jax.lax.axis_index("device"), normals)
            return normals + 0 * params + 0 * batch["image"].sum((1, 2, 3)), normals

        task = Task(lambda _: jnp.zeros(()), loss, None, None, (0.0, 1.0), None, None, None)
        optimizer = adam(learning_rate=1e-3, warmup_steps=0, b1=0.9, b2=0.999, eps=1e-8, clip_norm=0.0)
        devices = jax.devices()[:devices]
        state = init_state(task, optimizer, seed)._replace(step=jnp.asarray(step))
        one_device = make_step(task, optimizer, seed=seed, ema_decay=0.9)
        step = parallel.over_devices(one_device, devices, (None, None, 0), (None, None))
        data = {"image": np.zeros((8, 1, 1, 1), np.uint8)}
        step(state, data, parallel.split(np.zeros((1, 8), np.int32), devices, axis=1))
        jax.effects_barrier()
        return np.concatenate([x for _, x in sorted(seen, key=lambda pair: pair[0])])

    reference = losses(0, 0, 1)
    assert len(np.unique(reference)) == 8
    np.testing.assert_array_equal(reference, losses(0, 0, 4))
    assert not np.intersect1d(reference, losses(1, 0, 1)).size
    assert not np.intersect1d(reference, losses(0, 1, 1)).size


def test_the_batch_is_gathered_by_index(tiny_config, tiny_source):
    """Another selection of rows gives another loss; the same rows from a shuffled set give the same one."""
    order = np.random.default_rng(5).permutation(48)
    inverse = np.argsort(order)
    task = build(tiny_config, (8, 8, 1))
    keys = jax.random.split(jax.random.key(0), 4)
    params = jax.tree.map(lambda x: x + 0.05, jax.jit(task.init)(jax.random.key(0)))
    image = tiny_source.arrays["image"]
    rows = np.array([3, 1, 4, 15])
    compiled = jax.jit(task.loss)
    loss, _ = compiled(params, {"image": image[rows]}, keys)
    chex.assert_shape(loss, (4,))
    chex.assert_trees_all_equal(loss, compiled(params, {"image": image[order][inverse[rows]]}, keys)[0])
    assert not np.allclose(loss, compiled(params, {"image": image[rows + 1]}, keys)[0])


def test_losses_by_level(tiny_config, tiny_source):
    """The tenths add up to the loss: all 16 examples of a step fall in one of them, whatever the devices."""
    _, metrics = run_steps(tiny_config, tiny_source, 2, devices=2)
    chex.assert_shape(metrics["level_loss"], (2, 10))
    np.testing.assert_array_equal(metrics["level_count"].sum(1), [16, 16])
    np.testing.assert_allclose(metrics["level_loss"].sum(1) / 16, metrics["loss"], rtol=1e-5)


def test_ema_starts_gradually():
    """d = min(decay, (1 + k) / (10 + k)), followed by hand for a scalar parameter."""
    ema, expected = jnp.asarray(0.0), 0.0
    for k in range(200):
        ema = update_ema(ema, jnp.asarray(float(k)), 0.9, jnp.asarray(k))
        d = min(0.9, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * k
    chex.assert_trees_all_close(ema, np.float32(expected), rtol=1e-5)


def test_learning_rate_warms_up_linearly():
    schedule = learning_rate_schedule(0.4, 4)
    np.testing.assert_allclose([schedule(k) for k in (0, 1, 3, 4, 100)], [0.1, 0.2, 0.4, 0.4, 0.4], rtol=1e-6)
    assert learning_rate_schedule(0.4, 0)(0) == 0.4


@pytest.mark.parametrize("clip_norm, expected", [(1.0, 0.1), (0.0, 1.0), (100.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(clip_norm, expected):
    """Norm 10; seen in Adam's first moment, (1 - b1) g."""
    optimizer = adam(learning_rate=1.0, warmup_steps=0, b1=0.9, b2=0.999, eps=1e-8, clip_norm=clip_norm)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, state = optimizer.update({"a": jnp.array([6.0]), "b": jnp.array([8.0])}, optimizer.init(params), params)
    moment = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (1,)][0]
    np.testing.assert_allclose(moment, 0.1 * 6.0 * expected, rtol=1e-5)


def test_adam_against_its_formula():
    optimizer = adam(learning_rate=0.1, warmup_steps=0, b1=0.8, b2=0.9, eps=1e-3, clip_norm=0.0)
    params, m, v, x = jnp.asarray(1.0), 0.0, 0.0, 1.0
    state = optimizer.init(params)
    for k in range(1, 6):
        gradient = 2 * x
        updates, state = optimizer.update(jnp.asarray(2 * params), state, params)
        params = params + updates
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        x -= 0.1 * (m / (1 - 0.8**k)) / (np.sqrt(v / (1 - 0.9**k)) + 1e-3)
    chex.assert_trees_all_close(params, np.float32(x), rtol=1e-5)


def test_batch_that_the_devices_do_not_divide():
    with pytest.raises(UserError, match="batch_size is 100 and there are 8 devices.*96"):
        parallel.check_divisible(100, jax.devices()[:8])


def test_state_has_all_that_changes():
    assert State._fields == ("step", "params", "opt_state", "ema")
