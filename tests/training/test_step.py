import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from ddpm_jax.diffusion.bound import bins, density
from ddpm_jax.diffusion.losses import LOSSES, Loss
from ddpm_jax.diffusion.times import Examples
from ddpm_jax.errors import UserError
from ddpm_jax.optimizers import optimizer_of
from ddpm_jax.tasks import build
from ddpm_jax.tasks.task import Task
from ddpm_jax.training import parallel
from ddpm_jax.training.averages import decayed_average
from ddpm_jax.training.step import State, init_state, make_step, run_once


def run_steps(config, source, count, devices, per_call=1, micro_batches=1):
    """The state after `count` steps on the first `devices` devices, and each step's metrics [count]."""
    devices = jax.devices()[:devices]
    task = build(config, source.image_shape, source.num_classes)
    optimizer = optimizer_of(config)
    decays = config.ema.decays
    state = parallel.replicate(run_once(lambda: init_state(task, optimizer, config.seed, len(decays))), devices)
    data = parallel.replicate(source.arrays, devices)
    one_device = make_step(task, optimizer, seed=config.seed, ema_decays=decays, micro_batches=micro_batches)
    step = parallel.over_devices(one_device, devices, (None, None, 0), (None, None), (0,))
    collected = []
    for k in range(0, count, per_call):
        rows = np.stack([np.random.default_rng(i).permutation(48)[:16] for i in range(k, k + per_call)]).astype(np.int32)
        state, metrics = step(state, data, parallel.split(rows, devices, axis=1))
        collected.append(jax.device_get(metrics))
    return jax.device_get(state), jax.tree.map(lambda *m: np.concatenate(m), *collected)


def assert_rounding_apart(a, b):
    """Two (state, metrics): losses to 1e-5 of themselves, parameters and averages to 2e-4.

    Adam divides by the root of the second moment, which enlarges rounding where gradients vanish.
    """
    np.testing.assert_allclose(a[1]["loss"], b[1]["loss"], rtol=1e-5)
    np.testing.assert_array_equal(a[1]["level_count"], b[1]["level_count"])
    chex.assert_trees_all_close((a[0].params, a[0].ema), (b[0].params, b[0].ema), atol=2e-4)


SPLITS = [(2, 1), (4, 1), (8, 1), (1, 4), (2, 2)]


@pytest.mark.parametrize(
    "devices, micro_batches", [s if s in ((2, 1), (2, 2)) else pytest.param(*s, marks=pytest.mark.thorough) for s in SPLITS]
)
def test_the_same_on_any_number_of_devices_and_in_micro_batches(point_config, point_source, devices, micro_batches):
    """The same noise for each example, so only the order of the sums differs."""
    one = run_steps(point_config, point_source, 3, devices=1)
    assert_rounding_apart(one, run_steps(point_config, point_source, 3, devices, micro_batches=micro_batches))


def test_the_bound_ends_in_the_mass_of_pixels_and_in_the_density_of_points(point_config, monkeypatch):
    decoders = []

    def spy(apply, process, prediction, x0, eps, t, decoder):  # noqa: ARG001
        decoders.append(decoder)
        return jnp.zeros(len(x0))

    monkeypatch.setitem(LOSSES, "denoising", lambda *, weighting: Loss(spy))  # noqa: ARG005
    task, keys = build(point_config, (2,)), jax.random.split(jax.random.key(0), 3)
    for dtype in (jnp.uint8, jnp.float32):
        task.loss({}, (), {"image": jnp.zeros((3, 2), dtype)}, Examples(keys, jnp.arange(3), 3), ())
    assert decoders == [bins, density]


@pytest.mark.parametrize("devices, micro_batches", [pytest.param(4, 1, marks=pytest.mark.thorough), (1, 4)])
def test_the_same_labels_are_dropped(point_config, point_source, devices, micro_batches):
    """On any number of devices, and in micro-batches."""
    point_config.cond.update(labels=True, dropout=0.5)
    one = run_steps(point_config, point_source, 3, devices=1)
    assert_rounding_apart(one, run_steps(point_config, point_source, 3, devices, micro_batches=micro_batches))


@pytest.mark.parametrize("devices, micro_batches", [pytest.param(4, 1, marks=pytest.mark.thorough), (2, 2)])
def test_times_that_see_the_whole_batch(devices, micro_batches, point_config, point_source):
    """Stratified ones go by the place in it, importance-sampled ones by the losses of all of it, in its order."""
    point_config.process.steps, point_config.times.kept = 5, 2
    for name in ("stratified", "importance"):
        point_config.times.name = name
        one = run_steps(point_config, point_source, 5, devices=1)
        other = run_steps(point_config, point_source, 5, devices, micro_batches=micro_batches)
        assert_rounding_apart(one, other)
        chex.assert_trees_all_close(one[0].history, other[0].history, rtol=1e-5)
    assert one[0].history.counts.sum() == 5 * 16 and (one[0].history.counts >= 2).all()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "devices, micro_batches", [(4, 1), *(pytest.param(*s, marks=pytest.mark.full) for s in SPLITS if s != (4, 1))]
)
def test_the_same_with_a_unet(tiny_config, tiny_source, devices, micro_batches):
    one = run_steps(tiny_config, tiny_source, 3, devices=1)
    assert_rounding_apart(one, run_steps(tiny_config, tiny_source, 3, devices, micro_batches=micro_batches))


@pytest.mark.thorough
def test_twice_the_same_bits(tiny_config, tiny_source):
    a, metrics_a = run_steps(tiny_config, tiny_source, 3, devices=1)
    b, metrics_b = run_steps(tiny_config, tiny_source, 3, devices=1)
    chex.assert_trees_all_equal((a, metrics_a), (b, metrics_b))


def test_several_steps_per_call_are_the_same_steps(point_config, point_source):
    one = run_steps(point_config, point_source, 4, devices=2)
    scanned = run_steps(point_config, point_source, 4, devices=2, per_call=4)
    assert scanned[0].step == one[0].step == 4
    assert_rounding_apart(one, scanned)


def test_randomness_is_addressed_by_seed_step_and_example():
    """A spy task whose loss is a normal of its key: it changes with seed, step and place, and not with the devices.

    Nor with the micro-batches. What it sees is put in the order of the examples, by their numbers in the images.
    """

    def losses(seed, step, devices, micro_batches=1):
        seen = []

        def loss(params, frozen, batch, examples, _):  # noqa: ARG001
            normals = jax.vmap(jax.random.normal)(examples.keys)
            jax.debug.callback(lambda *pairs: seen.extend(zip(*map(np.ravel, pairs), strict=True)), batch["image"], normals)
            return normals + 0 * params + 0 * batch["image"].sum((1, 2, 3)), normals, ()

        task = Task(lambda _: jnp.zeros(()), loss, None, None, (0.0, 1.0), None, None, None, None)
        optimizer = optax.adam(1e-3)
        devices = jax.devices()[:devices]
        state = init_state(task, optimizer, seed, 1)._replace(step=jnp.asarray(step))
        one_device = make_step(task, optimizer, seed=seed, ema_decays=(0.9,), micro_batches=micro_batches)
        step = parallel.over_devices(one_device, devices, (None, None, 0), (None, None))
        data = {"image": np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)}
        step(state, data, parallel.split(np.arange(8, dtype=np.int32)[None], devices, axis=1))
        jax.effects_barrier()
        assert [image for image, _ in sorted(seen)] == list(range(8))
        return np.array([x for _, x in sorted(seen)])

    reference = losses(0, 0, 1)
    assert len(np.unique(reference)) == 8
    for devices, micro_batches in [(8, 1), (1, 8), (2, 2)]:
        np.testing.assert_array_equal(reference, losses(0, 0, devices, micro_batches))
    assert not np.intersect1d(reference, losses(1, 0, 1)).size
    assert not np.intersect1d(reference, losses(0, 1, 1)).size


@pytest.mark.thorough
def test_the_batch_is_gathered_by_index(tiny_config, tiny_source):
    """Another selection of rows gives another loss; the same rows from a shuffled set give the same one."""
    order = np.random.default_rng(5).permutation(48)
    inverse = np.argsort(order)
    task = build(tiny_config, (8, 8, 1))
    examples = Examples(jax.random.split(jax.random.key(0), 4), jnp.arange(4), 4)
    params = jax.tree.map(lambda x: x + 0.05, jax.jit(task.init)(jax.random.key(0)))
    image = tiny_source.arrays["image"]
    rows = np.array([3, 1, 4, 15])
    compiled = jax.jit(task.loss)
    loss, *_ = compiled(params, (), {"image": image[rows]}, examples, ())
    chex.assert_shape(loss, (4,))
    chex.assert_trees_all_equal(loss, compiled(params, (), {"image": image[order][inverse[rows]]}, examples, ())[0])
    assert not np.allclose(loss, compiled(params, (), {"image": image[rows + 1]}, examples, ())[0])


def test_losses_by_level(point_config, point_source):
    """The tenths add up to the loss: all 16 examples of a step fall in one of them, whatever the devices."""
    _, metrics = run_steps(point_config, point_source, 2, devices=2)
    chex.assert_shape(metrics["level_loss"], (2, 10))
    np.testing.assert_array_equal(metrics["level_count"].sum(1), [16, 16])
    np.testing.assert_allclose(metrics["level_loss"].sum(1) / 16, metrics["loss"], rtol=1e-5)


def test_several_averages(point_config, point_source):
    """Each is the one that a run with its decay alone has; a decay of 0 leaves the parameters themselves."""
    point_config.ema.decays = (0.15, 0.0)
    several, _ = run_steps(point_config, point_source, 3, devices=1)
    point_config.ema.decays = (0.15,)
    alone, _ = run_steps(point_config, point_source, 3, devices=1)
    chex.assert_trees_all_close(several.ema[0], alone.ema[0], rtol=1e-6, atol=1e-8)
    chex.assert_trees_all_close(several.ema[1], several.params, rtol=1e-6, atol=1e-8)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, several.ema), strict=True)) > 1e-5


@pytest.mark.parametrize("bad", ["loss", "gradient", "parameters"])
def test_an_update_that_is_not_finite_is_refused(bad):
    """On one of two devices, for one of its examples. The step is counted, and the next one goes on from what was there."""

    def loss(params, frozen, batch, *_):  # noqa: ARG001
        x = batch["image"].sum((1, 2, 3)).astype(float)
        is_bad = x == 7
        if bad == "loss":
            losses = jnp.where(is_bad, jnp.nan, params * x)
        elif bad == "gradient":
            losses = params * x + jnp.sqrt(jnp.where(is_bad, 0.0, 1.0) * params)
        else:
            losses = params * jnp.where(is_bad, 1e19, x)
        return losses, x / 10, x

    task = Task(lambda _: jnp.ones(()), loss, None, None, (0.0, 1.0), None, None, None, None)
    task = task._replace(history=jnp.zeros(4), remember=lambda _, seen: seen)
    optimizer = optax.sgd(1e21, momentum=0.5) if bad == "parameters" else optax.sgd(0.1, momentum=0.5)
    devices = jax.devices()[:2]
    state = init_state(task, optimizer, 0, 2)
    one_device = make_step(task, optimizer, seed=0, ema_decays=(0.9, 0.0))
    step = parallel.over_devices(one_device, devices, (None, None, 0), (None, None))
    data = {"image": np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)}
    refused, metrics = step(state, data, np.array([[[1, 2]], [[7, 3]]], np.int32))
    assert not np.isfinite([metrics[name] for name in ("loss", "grad_norm", "param_norm")]).all()
    chex.assert_trees_all_equal(refused, state._replace(step=jnp.asarray(1)))
    if bad != "parameters":
        after, metrics = step(refused, data, np.array([[[1, 2]], [[4, 3]]], np.int32))
        assert after.step == 2 and after.params != 1 and np.isfinite(metrics["loss"]).all()
        assert metrics["level_count"][0].tolist() == [0, 1, 1, 1, 1, 0, 0, 0, 0, 0]  # of tenths, as the levels are
        assert after.history.tolist() == [1, 2, 4, 3]  # what was seen on all devices, in the order of the batch
        np.testing.assert_allclose(after.ema[0] - 1, 9 / 11 * (after.params - 1), rtol=1e-6)  # d = 2 / 11, of the second step


@pytest.mark.parametrize("loss", [pytest.param("denoising", marks=pytest.mark.thorough), "hybrid"])
def test_what_bfloat16_leaves_in_float32(loss, tiny_config):
    """Parameters, averages, optimizer state and metrics; in the network the sums, and the last convolution, alone of them all.

    Of the statistics of normalisation, tests/models/test_unet.py tests the numbers: a sum's type tells nothing of its terms'.
    """
    tiny_config.network.update(dtype="bfloat16", attention=(4,))
    tiny_config.loss.name = loss
    task, optimizer = build(tiny_config, (8, 8, 1)), optimizer_of(tiny_config)
    state = jax.eval_shape(lambda: init_state(task, optimizer, 0, 1))
    one_device = make_step(task, optimizer, seed=0, ema_decays=(0.9,))
    step = parallel.over_devices(one_device, jax.devices()[:1], (None, None, 0), (None, None))
    data = {"image": jax.ShapeDtypeStruct((16, 8, 8, 1), np.uint8)}
    new, metrics = jax.eval_shape(step, state, data, jax.ShapeDtypeStruct((1, 1, 16), np.int32))
    for leaf in jax.tree.leaves((state, new, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32)

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 16))
    examples = Examples(keys, np.arange(16), 16)
    equations = list(flat_equations(jax.make_jaxpr(task.loss)(state.params, (), data, examples, ()).jaxpr))
    sums = [eqn for eqn in equations if eqn.primitive.name.startswith(("reduce_sum", "reduce_max"))]
    products = [eqn for eqn in equations if eqn.primitive.name in ("dot_general", "conv_general_dilated")]
    floats = {eqn.invars[0].aval.dtype for eqn in sums if jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating)}
    assert len(sums) > 20 and floats == {np.dtype("float32")}
    assert [eqn.invars[0].aval.dtype.name for eqn in products].count("float32") == 1
    assert len(products) > 20 and products[-1].invars[0].aval.dtype == np.float32


def flat_equations(jaxpr):
    """The equations of a jaxpr and of all that it calls."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from flat_equations(inner)


def test_ema_starts_gradually():
    """d = min(decay, (1 + k) / (10 + k)) of every step, followed by hand for a scalar parameter."""
    ema, expected = jnp.asarray(0.0), 0.0
    for k in range(100):
        ema = decayed_average(ema, jnp.asarray(float(k)), 0.9, jnp.asarray(k))
        d = min(0.9, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * k
        chex.assert_trees_all_close(ema, np.float32(expected), rtol=1e-5)


def test_batch_that_the_devices_do_not_divide():
    with pytest.raises(UserError, match="batch_size is 100 and there are 8 devices.*96"):
        parallel.check_divisible(100, jax.devices()[:8], 1)
    with pytest.raises(UserError, match="micro_batches is 5.*12 examples.*96 on 8.*divisor of 12"):
        parallel.check_divisible(96, jax.devices()[:8], 5)


def test_state_has_all_that_changes():
    assert State._fields == ("step", "params", "opt_state", "ema", "history", "frozen")
