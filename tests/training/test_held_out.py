import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as configs
from ddpm_jax.data import Source
from ddpm_jax.diffusion.keys import Purpose, key_of
from ddpm_jax.diffusion.times import Examples
from ddpm_jax.errors import UserError
from ddpm_jax.runs import resumable, run_directory
from ddpm_jax.tasks import build
from ddpm_jax.training import loop
from ddpm_jax.training.held_out import make_loss, open_held_out
from ddpm_jax.training.parallel import replicate


def test_the_loss_does_not_depend_on_batch_or_devices_and_drops_nothing(point_config, point_source):
    """It is the mean of the task's losses by keys of (eval.seed, example), with the labels, without dropout; stratified too."""
    point_config.cond.update(labels=True, dropout=0.9)
    point_config.network.dropout = 0.9
    point_config.times.name = "stratified"
    point_config.eval.update(loss_examples=21, batch_size=21, seed=5)
    task = build(point_config, (2,), 3)
    params = jax.tree.map(lambda leaf: leaf + 0.05, jax.jit(task.init)(key_of(0, Purpose.INIT)))

    def loss(devices=1, **settings):
        config = point_config.copy_and_resolve_references()
        config.eval.update(settings)
        devices = jax.devices()[:devices]
        return make_loss(task, config, point_source, devices)(replicate(params, devices), ())

    found = loss()
    np.testing.assert_allclose([loss(batch_size=8), loss(devices=8, batch_size=9)], found, rtol=1e-5)
    assert abs(loss(seed=6) - found) > 1e-3 and loss(loss_examples=0) == loss(loss_examples=99) != found

    places = jnp.arange(21)
    keys = jax.vmap(lambda place: jax.random.fold_in(key_of(5, Purpose.HELD_OUT), place))(places)
    point_config.cond.dropout = point_config.network.dropout = 0.0
    plain = build(point_config, (2,), 3)
    losses, *_ = plain.loss(params, (), point_source.gather(places), Examples(keys, places, 21), plain.history)
    np.testing.assert_allclose(found, losses.mean(), rtol=1e-5)


def test_no_image_is_mirrored(tiny_config, tiny_source):
    examples = Examples(jax.random.split(key_of(0, Purpose.INIT), 4), jnp.arange(4), 4)

    def program(flip):
        tiny_config.data.flip = flip
        task = build(tiny_config, (8, 8, 1))
        args = jax.eval_shape(task.init, key_of(0, Purpose.INIT)), (), tiny_source.gather(np.arange(4)), examples, ()
        return str(jax.make_jaxpr(lambda *args: task.loss(*args, training=False)[0])(*args))

    assert program(True) == program(False)


@pytest.mark.thorough
def test_it_is_logged_every_so_many_steps(point_config, point_source, tmp_path, metrics, monkeypatch):
    """By the average that sampler.ema names; a loss that is no number is none. Two steps see the same times and noise."""
    point_config.train.update(steps=6, log_every=1, checkpoint_every=6, sample_every=0)
    point_config.ema.decays, point_config.sampler.ema = (0.0, 0.9999), 1
    point_config.optim.learning_rate = 1e-30
    point_config.eval.update(loss_every=2, loss_examples=0)
    task, devices = build(point_config, (2,), 3), jax.devices()[:1]
    run_directory.write(tmp_path, point_config, (2,), 3)
    state = resumable.train(point_config, tmp_path, task, point_source, devices, held_out=point_source)
    found = {line["step"]: line["eval_loss"] for line in metrics(tmp_path) if "eval_loss" in line}
    assert found.keys() == {2, 4, 6} and len(set(found.values())) == 1
    assert found[6] == make_loss(task, point_config, point_source, devices)(state.ema[1], ())
    used = []
    monkeypatch.setattr(loop, "make_loss", lambda *_: lambda params, _: used.append(params) or None)
    point_config.train.steps = 8
    state = resumable.train(point_config, tmp_path, task, point_source, devices, held_out=point_source)
    assert metrics(tmp_path)[7]["eval_loss"] is None and len(used) == 1


def test_data_without_that_split_and_other_mistakes():
    config = configs.base()
    source = Source({"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.zeros(4, np.int32)}, 10)
    assert open_held_out(config, source) is None
    config.eval.loss_every = 200
    with pytest.raises(UserError, match="every=200 measures .* split 'test', .* digits has one split.* at 0, or give"):
        open_held_out(config, source)
    config.train.log_every = 150
    with pytest.raises(UserError, match="loss_every is 200, .* every 150 steps: take a multiple"):
        open_held_out(config, source)
    config.train.log_every, config.data.name = 100, "toy2d"
    with pytest.raises(UserError, match=r"'test' has images of \[2\] in 2 classes, .* \[8, 8, 1\] in 10"):
        open_held_out(config, source)
    config.data.num_examples = 7
    source = Source({"image": np.zeros((4, 2), "f"), "label": np.zeros(4, np.int32)}, 2)
    assert open_held_out(config, source).num_examples == 7
