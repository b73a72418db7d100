"""Labels, and a made-up condition that is a pytree of two arrays: training, dropout, guidance, sampling, likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ddpm_jax
from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.guidance import classifier_free
from ddpm_jax.diffusion.keys import Purpose, key_of, keys_of
from ddpm_jax.diffusion.likelihood import SOLVERS, log_likelihood
from ddpm_jax.diffusion.process import add_noise
from ddpm_jax.diffusion.sample import Sampled, encode, sample, sample_keys
from ddpm_jax.diffusion.samplers import ddim
from ddpm_jax.diffusion.times import TIMES, Examples
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import bits_per_dimension
from ddpm_jax.models import NETWORKS
from ddpm_jax.runs import resumable, run_directory, sampling
from ddpm_jax.runs.run import Run
from ddpm_jax.tasks import build, conditions
from ddpm_jax.tasks.conditions import CONDITIONS, Conditioning
from ddpm_jax.tasks.noising import LABEL, NOISE, TIME

PLACES = np.random.default_rng(1).normal(size=(3, 2, 2)).astype("f")
PAIRS = {"place": PLACES, "word": np.arange(3, dtype=np.int32)}
NULL = {"place": np.zeros((2, 2), "f"), "word": 3}


def pairs(config, num_classes, class_names):  # noqa: ARG001 - as all
    """What stands for a label: a matrix and a word."""
    return Conditioning(
        name="pair",
        shown=True,
        network={"num_classes": num_classes},
        of=lambda batch: {"place": jnp.asarray(PLACES)[batch["label"]], "word": jnp.asarray(batch["label"])},
        null=NULL,
        rows=jax.tree.map(jnp.asarray, PAIRS),
        by_default=True,
        told="condition",
        read=lambda given: jax.tree.map(jnp.asarray, given),
        written=lambda rows: {name: np.asarray(leaf) for name, leaf in rows.items()},
    )


class Told(nn.Module):
    """A function of x and the condition, either of them."""

    num_classes: int = 0
    outputs: int = 1

    @nn.compact
    def __call__(self, x, time, keys=None, condition=None):  # noqa: ARG002
        parts = condition if isinstance(condition, dict) else {"word": condition}
        told = nn.Embed(self.num_classes + 1, 2, embedding_init=nn.initializers.normal(1.0))(parts["word"])
        if "place" in parts:
            told = told + nn.Dense(2, use_bias=False)(parts["place"].reshape(len(x), -1))
        return self.param("scale", nn.initializers.constant(0.3), ()) * x + told * jnp.tanh(x).mean(-1, keepdims=True)


@pytest.fixture(params=[pytest.param("labels", marks=pytest.mark.thorough), "pairs"])
def kind(request, monkeypatch):
    monkeypatch.setitem(NETWORKS, "told", Told)
    if request.param == "pairs":
        monkeypatch.setitem(CONDITIONS, "labels", pairs)
    return request.param


@pytest.fixture
def config(kind, point_config):  # noqa: ARG001
    point_config.network.name = "told"
    point_config.cond.update(labels=True, dropout=0.3)
    point_config.train.update(sample_every=0, steps=4, checkpoint_every=4)
    point_config.optim.learning_rate = 0.1
    point_config.sampler.update(name="ddim", steps=5)
    return point_config


def rows(kind, labels):
    labels = jnp.asarray(labels)
    return labels if kind == "labels" else jax.tree.map(lambda leaf: jnp.asarray(leaf)[labels], PAIRS)


@pytest.fixture
def train(config, point_source, tmp_path):
    def train(devices):
        workdir = tmp_path / f"run{devices}"
        run_directory.write(workdir, config, (2,), 3)
        resumable.train(config, workdir, build(config, (2,), 3), point_source, jax.devices()[:devices])
        return ddpm_jax.load(workdir)

    return train


def test_the_loss_is_that_of_the_condition_or_of_none(kind, config, point_source):
    """By hand: a share has the null row, in every array of the condition; where it is not training, none has it."""
    task = build(config, (2,), 3)
    params = jax.jit(task.init)(key_of(0, Purpose.INIT))
    batch, examples = point_source.arrays, Examples(jax.random.split(jax.random.key(3), 48), jnp.arange(48), 48)
    dropped = jax.vmap(jax.random.bernoulli, (0, None))(examples.of(LABEL), 0.3)
    assert 5 < dropped.sum() < 30
    t, _ = TIMES["uniform"]().draw(task.process, examples._replace(keys=examples.of(TIME)), ())
    eps = jax.vmap(lambda key: jax.random.normal(key, (2,)))(examples.of(NOISE))
    x = add_noise(task.process, jnp.asarray(batch["image"]), eps, t)
    conditional = task.denoiser(params, (), rows(kind, batch["label"]))(x, t).eps
    unconditional = task.denoiser(params, ())(x, t).eps
    assert np.abs(conditional - unconditional).max(1).min() > 1e-4
    for training, predicted in ((True, jnp.where(dropped[:, None], unconditional, conditional)), (False, conditional)):
        found, *_ = task.loss(params, (), batch, examples, (), training=training)
        np.testing.assert_allclose(found, jnp.square(eps - predicted).mean(1), rtol=1e-4)


def test_the_devices_change_nothing(train):
    """In training; and what is learned is of the condition: each of its arrays has moved what it acts through."""
    one, four = train(1), train(4)
    first = build(one.config, (2,), 3).init(key_of(0, Purpose.INIT))
    for a, b, c in zip(*map(jax.tree.leaves, (one.params, four.params, first)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
        assert np.abs(a - c).max() > 1e-3


def test_samples_guidance_encoding_and_likelihood_are_those_of_the_kernel(kind, train, monkeypatch):
    """Sample i has row i mod N; a condition that is given takes the place of those of all classes."""
    run = train(1)
    run.config.sampler.update(name="ddim", steps=5)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    process, times, keys = run.process, uniform(run.process, steps=5), sample_keys(0, jnp.arange(4))
    word, given, all_four = kind.rstrip("s"), rows(kind, [2, 0, 1, 1]), rows(kind, [0, 1, 2, 0])

    def same(found, expected, tolerance=1e-4):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)

    @jax.jit
    def by_hand(condition, scale):
        conditional, unconditional = (run.task.denoiser(run.params, (), told) for told in (condition, None))
        denoise = classifier_free(lambda x, t: (conditional(x, t), unconditional(x, t)), process, scale=scale)
        return sample(ddim(eta=0.0), denoise, process, times, keys, (2,)).x

    plain = run.sample(4)
    same(plain, by_hand(all_four, 1.0))
    same(run.sample(4, condition=rows(kind, [2, 1, 0])), by_hand(rows(kind, [2, 1, 0, 2]), 1.0))
    of_one = conditions.at_least_one(run.task.condition.null, rows(kind, 1))
    assert conditions.count(of_one) == 1 and conditions.count(all_four) == 4
    for found, row in zip(*map(jax.tree.leaves, (conditions.in_turn(of_one, np.arange(4)), rows(kind, [1] * 4))), strict=True):
        np.testing.assert_array_equal(found, row)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:4])
    run.compiled.clear()
    guided = run.sample(4, guidance=3.0)
    same(guided, by_hand(all_four, 3.0), 1e-3)
    assert np.abs(guided - plain).max() > 1e-2
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    run.compiled.clear()

    points = np.random.default_rng(0).normal(size=(4, 2)).astype("f")
    up = encode(ddim(eta=0.0), run.denoiser(given), process, times[::-1], points).x
    same(run.encode(points, condition=given), up)
    back = sample(ddim(eta=0.0), run.denoiser(given), process, times, keys, (2,), x=up, last="stop").x
    same(run.decode(up, condition=given), back)
    with pytest.raises(UserError, match=f"The {word}s of the images must be given"):
        run.encode(points)

    settings = {"solver": "rk4", "steps": 4, "probe": "exact"}
    nats = run.log_likelihood(points, given, **settings).nats
    of_points, solver = keys_of(0, Purpose.EVALUATION, jnp.arange(4)), SOLVERS["rk4"](steps=4)
    same(nats, log_likelihood(run.denoiser(given), process, points, of_points, solver=solver, probe="exact").log_density)
    with pytest.raises(UserError, match=f"4 images want as many {word}s or one, found 2"):
        run.log_likelihood(points, rows(kind, [0, 1]), **settings)
    with pytest.raises(UserError, match=f"conditional run is that given the {word}s"):
        run.log_likelihood(points, **settings)


def test_written_samples_have_their_conditions(kind, config, parts_of, tmp_path):
    parts = parts_of(Sampled(np.zeros((4, 2), "f"), 1))
    _, path, _ = sampling.write_samples(tmp_path, "name", parts, {}, build(config, (2,), 3).condition)
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "arr_0"}
    wanted = {"arr_1": np.array([0, 1, 2, 0], np.int32)}
    if kind == "pairs":
        wanted = jax.tree.map(lambda leaf: leaf[[0, 1, 2, 0]], PAIRS)
    assert arrays.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.thorough
def test_examples_are_evaluated_given_their_conditions(kind, train, point_source):
    run = train(1)
    run.config.eval.update(bpd=True, solver="rk4", steps=3, num_examples=3, batch_size=2, bound_steps=4, probe="exact")
    found = bits_per_dimension.evaluate(run, point_source)
    assert found["conditions"]["data"]["given"] == kind.rstrip("s")
    batch = point_source.gather(np.arange(3))
    nats = run.log_likelihood(batch["image"], rows(kind, batch["label"])).nats
    np.testing.assert_allclose(found["ode"]["bits_per_dimension"], -nats.mean() / 2 / np.log(2), rtol=1e-4)


def test_a_run_without_conditions_takes_none(point_config):
    run = Run("runs/x", point_config, (2,), 3, build(point_config, (2,), 3), None)
    for call in (lambda: run.denoiser(rows("pairs", [0])), lambda: run.denoiser(labels=0)):
        with pytest.raises(UserError, match="runs/x is not conditional: give no labels"):
            call()
