"""Labels and guidance, from the loss to the samples."""

import dataclasses
import shutil
from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ddpm_jax
from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.guidance import classifier_free, dynamic_thresholding
from ddpm_jax.diffusion.predictions import PREDICTIONS, Prediction
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import encode, sample, sample_keys
from ddpm_jax.diffusion.samplers import ddim
from ddpm_jax.diffusion.times import Examples
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import bits_per_dimension
from ddpm_jax.models import NETWORKS
from ddpm_jax.runs import resumable, run_directory
from ddpm_jax.runs.run import load_guides
from ddpm_jax.tasks import build, conditions, guided


@pytest.fixture
def config(point_config):
    point_config.cond.labels = True
    return point_config


class Spy(nn.Module):
    """A network that says a thousand times the label."""

    num_classes: int

    @nn.compact
    def __call__(self, x, time, keys=None, condition=None):  # noqa: ARG002
        labels = jnp.zeros(len(x)) if condition is None else condition
        return self.param("w", nn.initializers.zeros, ()) + 1000.0 * labels[:, None] + jnp.zeros_like(x)


@pytest.mark.thorough
def test_labels_are_dropped_in_the_share_and_per_example(config, monkeypatch):
    """The others stay. What is dropped depends on the example's key, not on where it stands."""
    monkeypatch.setitem(NETWORKS, "spy", Spy)
    config.network.name, config.cond.dropout = "spy", 0.2
    task = build(config, (2,), 5)
    keys, labels = jax.random.split(jax.random.key(0), 4000), np.arange(4000, dtype=np.int32) % 5
    loss = jax.jit(task.loss)

    def shown(rows):
        batch = {"image": np.zeros((len(rows), 2), "f"), "label": labels[rows]}
        losses, *_ = loss(task.init(jax.random.key(0)), (), batch, Examples(keys[rows], rows, 4000), ())
        return np.rint(np.sqrt(losses) / 1000).astype(int)

    everything = shown(np.arange(4000))
    dropped = everything == 5
    np.testing.assert_array_equal(everything[~dropped], labels[~dropped])
    assert abs(dropped.mean() - 0.2) < 4 * np.sqrt(0.16 / 4000)
    np.testing.assert_array_equal(shown(np.arange(900, 1000)), everything[900:1000])
    config.cond.dropout = 0.0
    loss = jax.jit(build(config, (2,), 5).loss)
    np.testing.assert_array_equal(shown(np.arange(4000)), labels)


def test_what_a_sample_is_guided_by(config, monkeypatch):
    """One point and its x0: the network's word for the label of the sample, by its number in all of them; against that for the
    null label, as far as the scale says; and clipped where that is set."""
    monkeypatch.setitem(NETWORKS, "spy", Spy)
    config.network.name, config.prediction.name, config.loss.weighting = "spy", "x0", "x0"
    config.sampler.update(name="ddim", steps=1, labels=(2, 0, 1))

    def drawn(scale, **sampler):
        config.guidance.scale = scale
        config.sampler.update(sampler)
        task = build(config, (2,), 3)
        params = jax.tree.map(lambda w: w + 0.25, task.init(jax.random.key(0)))
        return jax.jit(task.sample)(params, (), task.knobs, np.uint32(0), np.array([7, 3, 2, 0], np.int32)).x[:, 0]

    labels = np.array([0, 2, 1, 2])
    np.testing.assert_allclose(drawn(1.0), 0.25 + 1000 * labels)
    np.testing.assert_allclose(drawn(3.0), 0.25 + 1000 * (3 * labels - 2 * 3), rtol=1e-6)  # the null label is 3
    np.testing.assert_allclose(drawn(1.0, clip="rederive"), [0.25, 1, 1, 1])


def test_a_weaker_model_stands_in_for_the_null_label(config):
    """With the same labels, on the other side of the scale. The interval, rescaling and thresholding are those that are set."""
    process, labels, t = PROCESSES["vp"](), jnp.array([1.0, 4.0]), jnp.array([0.3, 0.9])
    x = jnp.array([[0.3, 0.1], [-0.2, 0.7]])

    def bind(labels, factor=1.0):
        return lambda x, t: Prediction(factor * labels[:, None] * jnp.sin(3 * x), factor * x)  # noqa: ARG005

    weak = SimpleNamespace(denoiser=lambda params, frozen, labels, process: bind(labels, params))  # noqa: ARG005
    guides = {"guidance.weak": SimpleNamespace(task=weak, params=0.5, state=SimpleNamespace(frozen=()))}

    def guided_by(**section):
        config.guidance.update(section)
        knobs = guided.knobs(config.guidance, guides)
        return guided.by_pairs(bind, labels, 9, process, PREDICTIONS["eps"](), config.guidance, guides, knobs)(x, t)

    strong = bind(labels)(x, t)
    found = guided_by(scale=3.0, weak="somewhere")
    assert found.evaluations == 2
    np.testing.assert_allclose(found.eps, 3 * strong.eps - 2 * 0.5 * strong.eps, rtol=1e-6)
    np.testing.assert_allclose(found.x0, 2 * strong.x0, rtol=1e-6)
    for low, high, acts in ((0.0, 2.0, [True, False]), (2.0, 0.0, [False, True])):  # sigma / alpha is 0.8 and 7.5
        inside = guided_by(interval_low=low, interval_high=high)
        np.testing.assert_allclose(inside.x0, np.where(np.array(acts)[:, None], 2, 1) * strong.x0, rtol=1e-6)
    config.guidance.interval_low = config.guidance.interval_high = 0.0
    pair = lambda x, t: (bind(labels)(x, t), bind(labels, 0.5)(x, t))  # noqa: E731
    rescaled = classifier_free(pair, process, scale=3.0, rescale=0.7, prediction=PREDICTIONS["eps"]())
    chex.assert_trees_all_close(guided_by(rescale=0.7), rescaled(x, t), rtol=1e-6)
    chex.assert_trees_all_close(
        guided_by(threshold=80.0), dynamic_thresholding(rescaled, process, percentile=80.0)(x, t), rtol=1e-6
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(config, source) -> the directory of a run of 8 steps that are large."""
    made = {}

    def train(config, source):
        name = "cond" if config.cond.labels else "plain"
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            config.optim.learning_rate = 0.1
            config.train.sample_every = 0
            run_directory.write(made[name], config, (2,), source.num_classes)
            task = build(config, (2,), source.num_classes)
            resumable.train(config, made[name], task, source, jax.devices()[:1])
        return made[name]

    return train


@pytest.fixture
def run(config, point_source, trained, monkeypatch):
    """A conditional one of 3 classes, sampled by DDIM on one device."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    run = ddpm_jax.load(trained(config, point_source))
    run.config.sampler.update(name="ddim", steps=5)
    return run


@pytest.mark.thorough
@pytest.mark.parametrize("sampler", ["ddim", "adaptive_ode"])
def test_a_sample_depends_on_its_label_not_on_those_of_others(sampler, run):
    run.config.sampler.name = sampler
    in_turn = run.sample(6)
    np.testing.assert_allclose(in_turn, run.sample(6, labels=[0, 1, 2], batch_size=4), atol=1e-5)
    other = run.sample(6, labels=(2, 1))
    np.testing.assert_allclose(other[1], in_turn[1], atol=1e-5)
    for i in (0, 2, 3, 5):  # labels 2, 2, 1, 1 in place of 0, 2, 0, 2
        assert (np.abs(other[i] - in_turn[i]).max() > 1e-3) == (i != 2)
    np.testing.assert_allclose(run.sample(3, labels=np.array([2, 1, 2]))[2], in_turn[2], atol=1e-5)
    np.testing.assert_allclose(run.sample(3, labels=1)[1], in_turn[1], atol=1e-5)
    named = dataclasses.replace(run, class_names=NAMES)
    np.testing.assert_allclose(named.sample(3, labels="bee")[1], in_turn[1], atol=1e-5)
    np.testing.assert_allclose(named.sample(2, labels=["cat", "bee"])[1], in_turn[1], atol=1e-5)


NAMES = ("ant", "bee", "cat")


def test_labels_are_called_by_the_names_of_classes(config):
    def found(names):
        made = conditions.conditioning(config, 3, names)
        return made.rows.tolist(), made.names, made.by_default

    config.cond.labels = True
    assert found(NAMES) == ([0, 1, 2], NAMES, True)
    config.sampler.labels = (2, 0, 2)
    assert found(NAMES) == ([2, 0, 2], ("cat", "ant", "cat"), False)
    assert found(()) == ([2, 0, 2], (), False)
    assert conditions.numbers(["cat", 1, "ant"], 3, NAMES) == (2, 1, 0)
    assert conditions.numbers(["1", 1], 2, ["1", "2"]) == (0, 1)  # a word is a name, a number a label
    for label, names, told in [
        ("dog", NAMES, r"has 'dog'.* 0 to 2 \(0 'ant', 1 'bee', 2 'cat'\)"),
        (10, ("2", "10"), "A number is a label: that of the class 10 is 1"),
        ("kat", NAMES, "Did you mean cat"),
        (3, NAMES, "has 3.*0 to 2"),
        ("cat", (), "0 to 2, and have no names"),
    ]:
        with pytest.raises(UserError, match=told):
            conditions.numbers([label], len(names) or 3, names)


@pytest.mark.thorough
def test_a_denoiser_of_a_class_by_its_name(run):
    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.asarray(0.5)
    named = dataclasses.replace(run, class_names=NAMES, task=build(run.config, (2,), 3, class_names=NAMES))
    np.testing.assert_array_equal(named.denoiser(["cat", "ant", "bee"])(x, t).eps, run.denoiser([2, 0, 1])(x, t).eps)
    np.testing.assert_array_equal(named.denoiser("bee")(x, t).eps, run.denoiser(1)(x, t).eps)


def test_a_guide_has_the_same_classes(run):
    """The names of classes tell two folders apart; a run that does not know them is taken at its word."""
    config = run.config.copy_and_resolve_references()
    check = partial(guided.check_guides, config=config, process=run.process, image_shape=(2,), num_classes=3)
    for own, its in [(NAMES, NAMES), (NAMES, ()), ((), NAMES)]:
        check({"guidance.weak": dataclasses.replace(run, class_names=its)}, class_names=own)
    with pytest.raises(UserError, match="has other classes than the run that it is to guide .classes 1: 'bee' -> 'bat'"):
        check({"guidance.weak": dataclasses.replace(run, class_names=NAMES)}, class_names=("ant", "bat", "cat"))


def by_hand(run, denoise, labels):
    """The kernel's DDIM from the noise of the run's samples."""
    times, keys = uniform(run.process, steps=5), sample_keys(0, jnp.arange(len(labels)))
    return sample(ddim(eta=0.0), denoise, run.process, times, keys, (2,))


@pytest.mark.thorough
def test_guidance_is_that_of_the_kernel(run):
    """With the two predictions from two calls; the evaluations are counted, and at scale 1 there is one a step."""
    labels = jnp.array([0, 1, 2, 0])
    process, conditional, unconditional = run.process, run.denoiser(labels), run.denoise
    pair = lambda x, t: (conditional(x, t), unconditional(x, t))  # noqa: E731
    plain = run.draw(4)
    np.testing.assert_allclose(plain.x, by_hand(run, conditional, labels).x, atol=1e-4)
    assert plain.evaluations == 5

    guided = run.draw(4, guidance=3)
    expected = by_hand(run, classifier_free(pair, process, scale=3.0), labels)
    np.testing.assert_allclose(guided.x, expected.x, rtol=1e-3, atol=1e-3)
    assert guided.evaluations == expected.evaluations == 10
    assert np.abs(guided.x - plain.x).max() > 1e-2

    np.testing.assert_allclose(run.sample(4, guidance=0.0), by_hand(run, unconditional, labels).x, rtol=1e-3, atol=1e-3)

    options = {"scale": 3.0, "interval_low": 0.5, "interval_high": 5.0, "rescale": 0.7, "threshold": 90.0}
    expected = classifier_free(pair, process, scale=3.0, low=0.5, high=5.0, rescale=0.7, prediction=PREDICTIONS["eps"]())
    expected = dynamic_thresholding(expected, process, percentile=90.0)
    np.testing.assert_allclose(run.sample(4, guidance=options), by_hand(run, expected, labels).x, rtol=1e-3, atol=1e-3)


@pytest.mark.thorough
def test_scale_and_interval_are_arguments_of_one_program(run):
    run.sample(3)
    assert len(run.compiled) == 1
    drawn = [
        run.sample(3, guidance=g)
        for g in (2, np.float32(4), {"scale": 4, "interval_high": 2}, {"scale": 2, "interval_low": 0.1})
    ]
    assert len(run.compiled) == 2
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate(drawn) for b in drawn[:i])
    run.sample(3, guidance={"scale": 2, "rescale": 0.5})
    run.sample(3, guidance={"scale": 2, "rescale": 0.7})
    assert len(run.compiled) == 3


def test_both_predictions_come_from_one_call(config, monkeypatch):
    """Of a network that tells the batches it was traced for."""
    sizes = []

    class Told(Spy):
        def __call__(self, x, time, keys=None, condition=None):
            sizes.append((len(x), None if condition is None else len(condition)))
            return super().__call__(x, time, keys, condition)

    monkeypatch.setitem(NETWORKS, "told", Told)
    config.network.name = "told"
    for scale, size in ((1.0, 4), (2.0, 8)):
        config.guidance.scale = scale
        task = build(config, (2,), 3)
        params = task.init(jax.random.key(0))
        sizes.clear()
        jax.eval_shape(task.sample, params, (), task.knobs, np.uint32(0), jnp.arange(4))
        assert set(sizes) == {(size, size)}


@pytest.mark.thorough
def test_autoguidance(run, config, point_source, trained, tmp_path):
    """The weaker run, here an earlier checkpoint, with the same labels in place of the null label. Of any two runs alike."""
    weak = shutil.copytree(run.workdir, tmp_path / "weak")
    shutil.rmtree(weak / "checkpoints" / "8")
    weak_run, labels = ddpm_jax.load(weak), jnp.array([0, 1, 2])
    assert weak_run.state.step == 4
    drawn = run.draw(3, guidance={"scale": 2.0, "weak": str(weak)})
    pair = lambda x, t: (run.denoiser(labels)(x, t), weak_run.denoiser(labels)(x, t))  # noqa: E731
    expected = by_hand(run, classifier_free(pair, run.process, scale=2.0), labels)
    np.testing.assert_allclose(drawn.x, expected.x, rtol=1e-3, atol=1e-3)
    assert drawn.evaluations == 10
    assert run.guides[str(weak)].workdir == weak

    config.cond.labels = False
    plain = ddpm_jax.load(trained(config, point_source))
    plain.config.sampler.update(name="ddim", steps=5)
    with pytest.raises(UserError, match=r"knows 3 classes, and the run that it is to guide none"):
        plain.sample(3, guidance={"scale": 2.0, "weak": str(weak)})
    itself = plain.sample(3, guidance={"scale": 2.0, "weak": str(plain.workdir)})
    np.testing.assert_allclose(itself, plain.sample(3), atol=1e-3)
    plain.config.guidance.weak = str(plain.workdir)
    chex.assert_trees_all_equal(load_guides(plain.config)["guidance.weak"].params, plain.params)


def test_denoisers_of_a_conditional_run(run):
    x, t = jax.random.normal(jax.random.key(0), (3, 2)), jnp.asarray(0.5)
    each = [run.denoiser(label)(x, t).eps for label in range(3)]
    together = run.denoiser([2, 0, 1])(x, t).eps
    np.testing.assert_allclose(together, [each[2][0], each[0][1], each[1][2]], atol=1e-5)
    assert all(np.abs(a - b).max() > 1e-4 for i, a in enumerate([*each, run.denoise(x, t).eps]) for b in each[:i])
    for wrong in (3, -1, [0, 5], 0.5, "a", [[1]], None):
        with pytest.raises(UserError, match="whole numbers from 0 to 2"):
            run.denoiser(wrong)


@pytest.mark.thorough
def test_encoding_is_that_of_the_label(run):
    """And wants one: by default image i would get the label i."""
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    with pytest.raises(UserError, match="The labels of the images must be given, for this run is conditional"):
        run.encode(x)
    times, denoise = uniform(run.process, steps=5), run.denoiser(np.array([0, 2, 0, 2]))
    latents = run.encode(x, labels=[0, 2])
    np.testing.assert_allclose(latents, encode(ddim(), denoise, run.process, times[::-1], x).x, rtol=1e-3, atol=1e-3)
    assert np.abs(latents - run.encode(x, labels=1)).max() > 0.01
    keys = sample_keys(0, jnp.arange(4))
    down = sample(ddim(), denoise, run.process, times, keys, (2,), x=jnp.asarray(latents), last="stop").x
    np.testing.assert_allclose(run.decode(latents, labels=[0, 2]), down, rtol=1e-3, atol=1e-3)


def test_mistakes(run, config, point_source, trained):
    for labels, words in (((3,), "sampler.labels has 3, but the labels of this run are 0 to 2"), (-1, "sampler.labels takes")):
        with pytest.raises(UserError, match=words):
            run.sample(3, labels=labels)
    for guidance, words in (({"scal": 2}, "no config key 'guidance.scal'"), ("big", "guidance.scale takes a float")):
        with pytest.raises(UserError, match=words):
            run.sample(3, guidance=guidance)
    run.config.cond.dropout = 0.0
    with pytest.raises(UserError, match="learned no null label, cond.dropout being 0"):
        run.denoise(jnp.zeros((1, 2)), 0.5)
    config.cond.labels = False
    plain = ddpm_jax.load(trained(config, point_source))
    for call, words in (
        (lambda: plain.sample(3, labels=0), "this run is not conditional"),
        (lambda: plain.sample(3, guidance=2.0), "no unconditional model besides"),
        (lambda: plain.denoiser(0), "is not conditional"),
        (lambda: plain.sample(3, guidance={"form": "mean"}), "guidance.form=mean is of a classifier, and none is given"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert plain.sample(3).shape == (3, 2)


@pytest.mark.thorough
@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
def test_a_likelihood_is_that_of_the_example_given_its_label(solver, run):
    run.config.eval.update(bpd=True, steps=3, solver="rk4", bound_terms=2)
    data = [bits_per_dimension.conditions_of(run, identity)["data"] for identity in ({}, {"set": "a"}, {"set": "b"})]
    assert all(conditions["given"] == "label" for conditions in data)
    assert len({conditions.get("content") for conditions in data}) == 3  # other data, another file
    run.config.eval.solver = solver
    compute = jax.jit(bits_per_dimension.make_compute(run.task, run.config, (2,)))
    image, places = jnp.ones((2, 2)), jnp.arange(2)
    found = [compute(run.params, (), image, jnp.array(labels), places) for labels in ([0, 1], [0, 2])]
    for name in ("ode", "bound"):
        one, two = (part[name] for part in found)
        np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
        assert np.abs(one[1] - two[1]) > 1e-3
