"""The task classifier, and samples guided by its runs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.data import SOURCES
from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.guidance import classifier_guidance, mean_shift
from ddpm_jax.diffusion.process import add_noise
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import ancestral
from ddpm_jax.diffusion.times import Examples
from ddpm_jax.diffusion.transforms import clipped
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import jobs as evaluation
from ddpm_jax.models import NETWORKS
from ddpm_jax.runs import jobs, resumable, run_directory
from ddpm_jax.tasks import build
from ddpm_jax.tasks.choices import choose
from ddpm_jax.tasks.noising import NOISE, TIME


class Toy(nn.Module):
    """A network of three parameters."""

    @nn.compact
    def __call__(self, x, time, keys=None):  # noqa: ARG002
        w = self.param("w", nn.initializers.normal(), (3,))
        return w[0] + jnp.tanh(x + w[1]) + w[2] * jnp.cos(time)[:, None, None, None]


@pytest.fixture
def classifier_config(tiny_config):
    config = tiny_config.copy_and_resolve_references()
    config.task = "classifier"
    config.network.update(groups=2, channels=4, multipliers=(1,))
    config.train.update(steps=4, checkpoint_every=2, sample_every=2)
    config.optim.learning_rate = 0.1
    return config


def train(config, source, workdir):
    run_directory.write(workdir, config, source.image_shape, source.num_classes)
    task = build(config, source.image_shape, source.num_classes)
    return jax.device_get(resumable.train(config, workdir, task, source, jax.devices()[:1]))


def perturbed(params):
    """Without zeros."""
    return jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


@pytest.mark.thorough
def test_its_loss_is_the_cross_entropy_of_noised_images(classifier_config, tiny_source):
    """log 10 at the start. Probabilities add up to 1; they depend on the image, on time, and on no other example."""
    classifier_config.network.dropout = 0.0
    task = build(classifier_config, (8, 8, 1), 10)
    params = jax.jit(task.init)(jax.random.key(0))
    batch = {name: array[:6] for name, array in tiny_source.arrays.items()}
    examples = Examples(jax.random.split(jax.random.key(1), 6), jnp.arange(6), 6)
    loss, log_prob = jax.jit(task.loss), jax.jit(task.log_prob)
    np.testing.assert_allclose(loss(params, (), batch, examples, ())[0], np.log(10), rtol=1e-6)

    params = perturbed(params)
    t, _ = choose(classifier_config).times.draw(task.process, examples._replace(keys=examples.of(TIME)), ())
    eps = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(examples.of(NOISE))
    x = add_noise(task.process, batch["image"] / 127.5 - 1, eps, t)
    np.testing.assert_allclose(loss(params, (), batch, examples, ())[0], -log_prob(params, (), x, t, batch["label"]), rtol=1e-4)

    every = jnp.stack([log_prob(params, (), x, 0.5, jnp.full(6, label)) for label in range(10)])
    np.testing.assert_allclose(jnp.exp(every).sum(0), 1, rtol=1e-5)
    np.testing.assert_allclose(log_prob(params, (), x[2:4], 0.5, jnp.array([3, 7])), [every[3, 2], every[7, 3]], rtol=1e-4)
    assert np.abs(every[3] - log_prob(params, (), x, 0.6, jnp.full(6, 3))).max() > 1e-4
    assert np.abs(every[3, 0] - every[3, 1]) > 1e-4


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


@pytest.mark.thorough
@pytest.mark.usefixtures("one_device")
def test_its_runs(classifier_config, tiny_config, tiny_source, tmp_path, monkeypatch):
    """A run stopped and continued is the run that was not stopped. It guides another one's samples, and draws none itself."""
    monkeypatch.setitem(SOURCES, "digits", lambda: tiny_source)
    classifier_config.train.steps = 2
    jobs.train(classifier_config, tmp_path / "classifier")
    classifier_config.train.steps = 4
    jobs.train(classifier_config, tmp_path / "classifier")
    assert {path.name for path in (tmp_path / "classifier" / "samples").glob("*.png")} == {"forward_process.png"}
    classifier = ddpm_jax.load(tmp_path / "classifier")
    chex.assert_trees_all_equal(train(classifier_config, tiny_source, tmp_path / "whole"), classifier.state)
    for call in (
        lambda: jobs.sample(classifier.config, tmp_path / "classifier"),
        lambda: classifier.sample(3),
        lambda: classifier.denoise(jnp.zeros((1, 8, 8, 1)), 0.5),
        lambda: evaluation.evaluate(configs.unflatten(configs.flatten(classifier.config) | EVALUATED), tmp_path / "classifier"),
    ):
        with pytest.raises(UserError, match="A classifier .* has no denoiser and nothing to sample: let it guide another run"):
            call()

    monkeypatch.setitem(NETWORKS, "toy", Toy)
    tiny_config.network.name = "toy"
    tiny_config.train.update(steps=2, checkpoint_every=2, sample_every=0)
    tiny_config.optim.learning_rate = 0.1
    train(tiny_config, tiny_source, tmp_path / "plain")
    run, labels = ddpm_jax.load(tmp_path / "plain"), jnp.array([3, 7, 3])
    kept = clipped(run.denoise, run.process)
    of_x = lambda x, t: classifier.task.log_prob(classifier.params, (), x, t, labels)  # noqa: E731
    times, keys = uniform(run.process, steps=5), sample_keys(0, jnp.arange(3))
    drawn, guidance = [], {"classifier": str(tmp_path / "classifier"), "scale": 2.0}
    for form, transform in (("score", classifier_guidance), ("mean", mean_shift)):
        drawn.append(run.sample(3, labels=[3, 7], guidance=guidance | {"form": form}))
        denoise = transform(kept, run.process, of_x, scale=2.0)
        sampler = ancestral(variance="fixed_large")
        by_hand = jax.jit(lambda keys, of=(sampler, denoise): sample(*of, run.process, times, keys, (8, 8, 1)))
        np.testing.assert_allclose(drawn[-1], by_hand(keys).x, rtol=1e-3, atol=1e-3)
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-3 and np.abs(drawn[0] - run.sample(3)).max() > 1e-3
    with pytest.raises(UserError, match="sampler.labels has 10, but the labels of this run are 0 to 9"):
        run.sample(3, labels=10, guidance=guidance)
    outside = run.sample(3, labels=[3, 7], guidance=guidance | {"interval_low": 1e5, "interval_high": 1e6})
    np.testing.assert_allclose(outside, run.sample(3), atol=1e-5)
    with pytest.raises(UserError, match="guidance.rescale is of two predictions, and a classifier makes none"):
        run.sample(3, guidance=guidance | {"rescale": 0.5})
    run.config.data.name = "mnist"
    with pytest.raises(UserError, match="config.guidance.classifier, has the data digits, .* to guide mnist"):
        run.sample(3, guidance=guidance)
    run.config.data.name = "digits"
    run.config.process.beta_end = 0.03
    with pytest.raises(UserError, match="config.guidance.classifier, is of another process"):
        run.sample(3, guidance=guidance)


EVALUATED = {"eval.bpd": True, "eval.split": "train"}
