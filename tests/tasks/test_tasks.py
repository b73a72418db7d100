"""What the tasks make of a batch, by hand: the noise, the weights of the times, what the history remembers, the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import images
from ddpm_jax.diffusion.times import TIMES, Examples, History
from ddpm_jax.tasks import build
from ddpm_jax.tasks.noising import NOISE, TIME

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


@pytest.mark.parametrize("kind, of", [("diffusion", "point"), ("classifier", "tiny")])
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
            return -task.log_prob(params, x, t, batch["label"])
        return jnp.square(eps - task.denoiser(params)(x, t).eps).reshape(len(x), -1).mean(1)

    expected = jax.jit(by_hand)(params)
    losses, _, seen = jax.jit(task.loss)(params, batch, examples, HISTORY)
    np.testing.assert_allclose(losses, weights * expected, rtol=1e-4)
    np.testing.assert_allclose(seen[0], t, rtol=1e-6)
    np.testing.assert_allclose(seen[1], expected, rtol=1e-4)

    gradient, wanted = (
        jax.jit(jax.grad(mean))(params)
        for mean in (
            lambda params: task.loss(params, batch, examples, HISTORY)[0].mean(),
            lambda params: (weights * by_hand(params)).mean(),
        )
    )
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6 * largest)
