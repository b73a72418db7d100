"""Every root of a run's random numbers is the key of its purpose: by the addresses of today, and by those of older runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.diffusion.keys import ADDRESSES, Purpose, words_of
from ddpm_jax.runs import jobs, resumable, run, sampling
from ddpm_jax.tasks import build, diffusion
from ddpm_jax.tasks.task import Task
from ddpm_jax.training import held_out, loop, parallel
from ddpm_jax.training.parallel import AXIS
from ddpm_jax.training.step import init_state, make_step

TAGS = {
    "by_purpose": {purpose: (purpose.value,) for purpose in Purpose},
    "shared": {purpose: () for purpose in Purpose}
    | {Purpose.INIT: (0,), Purpose.TRAINING: (1,), Purpose.HELD_OUT: (2,)},
}


@pytest.fixture(params=ADDRESSES)
def config(request, point_config):
    """One with three seeds."""
    point_config.addresses, point_config.seed, point_config.eval.seed, point_config.sampler.seed = request.param, 7, 8, 9
    return point_config


def key(config, seed, purpose, *numbers):
    """By hand."""
    found = jax.random.key(seed)
    for number in (*TAGS[config.addresses][purpose], *numbers):
        found = jax.random.fold_in(found, number)
    return found


def assert_keys(found, expected):
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(jnp.stack(expected)))


class Stopped(Exception):
    pass


def test_of_the_loop(config, point_source, tmp_path, monkeypatch):
    """Of the first parameters, of the batches and of the step, as the loop asks for them."""
    found = {"init": [], "order": []}

    def batch_indices(address, *_):
        found["order"].append(address)
        raise Stopped

    def step(*_, **settings):
        found["step"] = settings["seed"], settings["addresses"]
        return lambda *_: None

    monkeypatch.setattr(loop, "batch_indices", batch_indices)
    monkeypatch.setattr(loop, "make_step", step)
    monkeypatch.setattr(resumable, "run_once", lambda f: f())
    task = build(config, (2,), 3)
    task = task._replace(init=lambda key: found["init"].append(key) or {"w": jnp.zeros(1)}, course=None)
    with pytest.raises(Stopped):
        resumable.train(config, tmp_path, task, point_source, jax.devices()[:1])
    assert_keys(jnp.stack(found["init"][-1:]), [key(config, 7, Purpose.INIT)])
    assert found["order"] == [words_of(7, Purpose.BATCHES, config.addresses)] == [(7, *TAGS[config.addresses][Purpose.BATCHES])]
    assert found["step"] == (7, config.addresses)


def test_of_the_step(config):
    """(seed, purpose, step, place in the global batch), on two devices."""

    def loss(params, frozen, batch, examples, _):  # noqa: ARG001
        return 0 * params + jnp.zeros(len(batch["image"])), jnp.zeros(len(batch["image"])), jax.random.key_data(examples.keys)

    task = Task(lambda _: jnp.zeros(()), loss, None, None, (0.0, 1.0), None, None, None, None)
    task = task._replace(history=jnp.zeros((4, 2), jnp.uint32), remember=lambda history, seen: seen)  # noqa: ARG005
    state = init_state(task, optax.sgd(0.1), 7, 0)._replace(step=jnp.asarray(5))
    step = make_step(task, optax.sgd(0.1), seed=7, ema_decays=(), addresses=config.addresses)
    rows = np.arange(4, dtype=np.int32).reshape(2, 1, 2)
    state, _ = jax.vmap(step, (None, None, 0), axis_name=AXIS)(state, {"image": jnp.zeros((4, 2))}, rows)
    found = jax.random.wrap_key_data(state.history[0])
    assert_keys(found, [key(config, 7, Purpose.TRAINING, 5, place) for place in range(4)])


def test_of_the_held_out_loss(config, point_source, monkeypatch):
    found = []
    monkeypatch.setattr(parallel, "over_devices", lambda f, *_: lambda *args: [f(*args)])
    monkeypatch.setattr(parallel, "split", lambda array, _: array)
    config.eval.update(loss_examples=3, batch_size=3)
    task = build(config, (2,), 3)
    task = task._replace(loss=lambda *of, training: (found.append(of[3].keys) or jnp.zeros(3),))  # noqa: ARG005
    held_out.make_loss(task, config, point_source, jax.devices()[:1])(None, ())
    assert_keys(found[0], [key(config, 8, Purpose.HELD_OUT, place) for place in range(3)])


def test_of_samples(config, monkeypatch):
    """As they are drawn, and as images are noised for img2img."""
    found = []

    def spy(*args, **_):
        found.append(args[4])
        raise Stopped

    monkeypatch.setattr(diffusion, "sampling", spy)
    task = build(config, (2,), 3)
    with pytest.raises(Stopped):
        task.course(None, (), task.knobs, 9, jnp.array([4, 0]))
    assert_keys(found[0], [key(config, 9, Purpose.SAMPLING, i) for i in (4, 0)])

    def noised(process, t, keys, images):  # noqa: ARG001
        found.append(keys)
        raise Stopped

    monkeypatch.setattr(run, "noised", noised)
    with pytest.raises(Stopped):
        run.Run(None, config, (2,), 3, task, None).img2img(np.zeros((2, 2)), until=0.5)
    assert_keys(found[1], [key(config, 9, Purpose.SAMPLING, i) for i in range(2)])


def test_of_the_film_of_the_noising_process(config, point_source, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(sampling, "write_film", lambda folder, name, film: found.append(film))  # noqa: ARG005
    config.sampler.frames = 4
    task = build(config, (2,), 3)._replace(noised=lambda frozen, batch, keys, frames: jax.random.key_data(keys))  # noqa: ARG005
    jobs.draw_forward_process(config, tmp_path, task, (), point_source)
    assert_keys(jax.random.wrap_key_data(found[0][:3]), [key(config, 7, Purpose.FORWARD_PROCESS, i) for i in range(3)])
