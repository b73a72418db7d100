"""The noise that all tasks on noised images add to their examples."""

import jax
import jax.numpy as jnp

from ddpm_jax import images
from ddpm_jax.diffusion.process import add_noise
from ddpm_jax.errors import UserError

# What a random number of training is for: the last part of its address (seed, step, example, purpose).
TIME, NOISE, DROPOUT, FLIP, LABEL, ENCODE = range(6)

LIMIT = 20.0  # log-SNR beyond which the log does not tell losses apart: a process may begin or end at infinity


def training_noise(config, process, times, space, image_shape):
    """A function (frozen, batch, examples, history, training) -> (x0, eps, t, weights), of the examples of a step.

    In training they are mirrored where that is set.
    """
    flip = config.data.flip
    if flip and len(image_shape) != 3:
        raise UserError(f"config.data.flip mirrors images, but the data are of shape {list(image_shape)}: leave it false.")

    def draw(frozen, batch, examples, history, training):
        x0 = images.to_model(batch["image"])
        if flip and training:
            flipped = jax.vmap(jax.random.bernoulli)(examples.of(FLIP))
            x0 = jnp.where(flipped[:, None, None, None], x0[:, :, ::-1], x0)
        x0 = space.encode(frozen, x0, examples.of(ENCODE))
        t, weights = times.draw(process, examples._replace(keys=examples.of(TIME)), history)
        return x0, jax.vmap(lambda key: jax.random.normal(key, space.shape))(examples.of(NOISE)), t, weights

    return draw


def on_its_way(process, times, space):
    """Fields of the `Task` that all tasks on noised images share."""

    def remember(history, seen):
        return times.update(history, *seen) if times.update else ()

    def noised(frozen, batch, keys, frames):
        shown = images.to_model(batch["image"])
        x0 = space.encode(frozen, shown, jax.vmap(jax.random.fold_in, (0, None))(keys, ENCODE))
        eps = jax.vmap(lambda key: jax.random.normal(key, space.shape))(keys)
        times = jnp.linspace(process.t_min.training, process.t_max, frames - 1)
        return jnp.stack([shown, *(space.decode(frozen, add_noise(process, x0, eps, t)) for t in times)])

    ends = jnp.clip(process.log_snr(jnp.stack([process.t_max, process.t_min.training])), -LIMIT, LIMIT)
    levels = float(ends[0]), float(ends[1])
    shared = {"levels": levels, "noised": noised, "history": times.init(process), "remember": remember}
    return shared | {"process": process, "space": space, "frozen": space.frozen}
