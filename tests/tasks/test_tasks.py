"""What the tasks make of a batch, by hand: the noise, the weights of the times, what the history remembers, the gradient."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ddpm_jax import images
from ddpm_jax.diffusion.process import add_noise
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.times import TIMES, Examples, History
from ddpm_jax.models import NETWORKS
from ddpm_jax.tasks import build, classifier
from ddpm_jax.tasks.noising import DROPOUT, FLIP, LABEL, NOISE, TIME

HISTORY = History(jnp.array([[1.0, 2.0], [8.0, 6.0], [0.5, 0.1], [3.0, 3.0], [20.0, 1.0]]), jnp.full(5, 2))


def task_of(config, kind, source):
    """With five times, drawn by the losses before, which are all there. The parameters are not those of the start."""
    config.task = kind
    config.process.steps, config.times.name, config.times.kept = 5, "importance", 2
    config.network.update(dropout=0.0, channels=4, multipliers=(1,), groups=2, attention=())
    config.process.beta_end = 0.5
    task = build(config, source.image_shape, source.num_classes)
    params = jax.jit(task.init)(jax.random.key(0))
    return task, jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


def examples_of(count):
    return Examples(jax.random.split(jax.random.key(4), count), jnp.arange(count), count)


@pytest.mark.parametrize("kind, of", [("diffusion", "point"), pytest.param("classifier", "tiny", marks=pytest.mark.thorough)])
def test_losses_at_times_that_are_not_uniform(kind, of, request):
    """weight * loss is what is averaged, also in the gradient; what is remembered is the loss."""
    config, source = (request.getfixturevalue(f"{of}_{name}") for name in ("config", "source"))
    task, params = task_of(config, kind, source)
    batch, examples = {name: array[:16] for name, array in source.arrays.items()}, examples_of(16)
    process = task.process
    t, weights = TIMES["importance"](kept=2).draw(process, examples._replace(keys=examples.of(TIME)), HISTORY)
    assert len(np.unique(weights)) > 2 and np.abs(np.log(weights)).max() > 1

    x0 = images.to_model(jnp.asarray(batch["image"]))
    eps = jnp.stack([jax.random.normal(key, source.image_shape) for key in examples.of(NOISE)])
    broad = (slice(None), *[None] * (x0.ndim - 1))
    x = process.alpha(t)[broad] * x0 + process.sigma(t)[broad] * eps

    def by_hand(params):
        if kind == "classifier":
            return -task.log_prob(params, (), x, t, batch["label"])
        return jnp.square(eps - task.denoiser(params, ())(x, t).eps).reshape(len(x), -1).mean(1)

    expected = jax.jit(by_hand)(params)
    losses, _, seen = jax.jit(task.loss)(params, (), batch, examples, HISTORY)
    np.testing.assert_allclose(losses, weights * expected, rtol=1e-4)
    np.testing.assert_allclose(seen[0], t, rtol=1e-6)
    np.testing.assert_allclose(seen[1], expected, rtol=1e-4)

    gradient, wanted = (
        jax.jit(jax.grad(mean))(params)
        for mean in (
            lambda params: task.loss(params, (), batch, examples, HISTORY)[0].mean(),
            lambda params: (weights * by_hand(params)).mean(),
        )
    )
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * largest)


class Told(nn.Module):
    """A network, or a classifier, that tells what it is shown."""

    tell: Callable
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, time, keys=None, condition=None):
        self.tell((x, time, keys, condition))
        out = jnp.zeros((len(x), self.num_classes)) if condition is None else jnp.zeros_like(x)
        return self.param("w", nn.initializers.zeros, ()) + out


@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_every_purpose_has_numbers_of_its_own(kind, tiny_config, tiny_source, monkeypatch):
    """Those of its address. Where it is not training, the times and the noise are the same and nothing is left out."""
    seen, count, process = [], 16, PROCESSES["linear"]()
    monkeypatch.setitem(NETWORKS, "told", partial(Told, seen.append))
    monkeypatch.setattr(classifier, "Classifier", lambda network, classes: Told(seen.append, classes))  # noqa: ARG005
    tiny_config.task, tiny_config.network.name = kind, "unet" if kind == "classifier" else "told"
    tiny_config.cond.update(labels=kind == "diffusion", dropout=0.4)
    tiny_config.data.flip = True
    task = build(tiny_config, (8, 8, 1), 10)
    params = task.init(jax.random.key(0))
    batch, examples = {name: array[:count] for name, array in tiny_source.arrays.items()}, examples_of(count)

    def of(purpose):
        return [jax.random.fold_in(key, purpose) for key in examples.keys]

    t = np.array([jax.random.randint(key, (), 1, 1001) for key in of(TIME)])
    noise = np.stack([jax.random.normal(key, (8, 8, 1)) for key in of(NOISE)])
    flipped = np.array([jax.random.bernoulli(key) for key in of(FLIP)])
    dropped = np.array([jax.random.bernoulli(key, 0.4) for key in of(LABEL)])
    assert 0 < flipped.sum() < count and 0 < dropped.sum() < count
    x0 = batch["image"] / np.float32(127.5) - 1
    for training in (True, False):
        seen.clear()
        task.loss(params, (), batch, examples, (), training=training)
        ((x, time, keys, labels),) = seen
        np.testing.assert_allclose(time, t - 1, atol=1e-3)
        shown = np.where((flipped & training)[:, None, None, None], x0[:, :, ::-1], x0)
        np.testing.assert_allclose(x, add_noise(process, jnp.asarray(shown), jnp.asarray(noise), t / 1000), atol=1e-5)
        if training:
            np.testing.assert_array_equal(*map(jax.random.key_data, (keys, jnp.stack(of(DROPOUT)))))
        assert training or keys is None
        if kind == "diffusion":
            np.testing.assert_array_equal(labels, np.where(dropped & training, 10, batch["label"]))


@pytest.mark.parametrize("name, ends, levels", [("vp", (1e-5, 1.0), (-10.0, 13.8)), ("cosine", (1e-3, 1.0), (-20.0, 10.1))])
def test_the_span_of_training(name, ends, levels, point_config):
    """Losses are told apart over its log-SNR, as far as 20; films go through it evenly, from the example itself."""
    point_config.process.update(name=name, zero_terminal_snr=name == "cosine")
    point_config.prediction.name = "v"
    task = build(point_config, (2,))
    np.testing.assert_allclose(task.levels, levels, atol=0.1)
    keys, image = jax.random.split(jax.random.key(3), 4), np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    film = jax.jit(task.noised, static_argnums=3)((), {"image": image}, keys, 4)
    eps = jnp.stack([jax.random.normal(key, (2,)) for key in keys])
    expected = [add_noise(task.process, image, eps, t) for t in np.linspace(*ends, 3, dtype=np.float32)]
    np.testing.assert_allclose(film, np.stack([image, *expected]), atol=1e-5)
