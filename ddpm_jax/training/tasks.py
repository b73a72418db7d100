"""Tasks: what is trained. The loop, the checkpoints and the logs know a task by the fields of `Task` alone."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import images
from ddpm_jax.construct import construct
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.losses import WEIGHTINGS, denoising_loss
from ddpm_jax.diffusion.predictions import PREDICTIONS, network_denoiser
from ddpm_jax.diffusion.processes import PROCESSES, Process, add_noise
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import SAMPLERS
from ddpm_jax.diffusion.times import TIMES
from ddpm_jax.diffusion.transforms import CLIPS
from ddpm_jax.errors import UserError
from ddpm_jax.models import NETWORKS

# What a random number of training is for: the last part of its address (seed, step, example, purpose).
TIME, NOISE, DROPOUT, FLIP = range(4)


class Task(NamedTuple):
    """A task built from a config.

    init(key) -> params.
    loss(params, batch, keys [B]) -> (losses [B], levels [B]): example b may depend on row b of the batch and keys[b] alone;
    its level says where it stands in the interval `levels`, over which the log tells losses apart.
    sample(params, knobs, seed, indices [B], frames, progress) -> Sampled, images [B, H, W, C] in [-1, 1]: image i depends on
    seed and indices[i] alone; `knobs` are the arrays that steer it, which never cause a recompilation.
    noised(batch, keys [B], frames) -> [frames, B, ...]: the examples on their way into noise.
    process, and denoise(params, x, t) -> Prediction, unclipped, are what plugs into the kernel.
    """

    init: Callable
    loss: Callable
    sample: Callable
    knobs: Any
    levels: tuple[float, float]
    noised: Callable
    process: Process
    denoise: Callable


def diffusion(config, image_shape: tuple[int, int, int]) -> Task:
    """A network that predicts the noise in images (or what it follows from) at every level of it."""
    network = construct(NETWORKS, config.network)
    process = construct(PROCESSES, config.process)
    sampler = construct(SAMPLERS, config.sampler)
    prediction = PREDICTIONS[config.prediction.name]
    weighting = WEIGHTINGS[config.loss.weighting]
    draw_times = TIMES[config.times.name]
    clip = CLIPS[config.sampler.clip]
    last = config.sampler.last
    flip = config.data.flip
    if flip and len(image_shape) != 3:
        raise UserError(f"config.data.flip mirrors images, but the data are of shape {list(image_shape)}: leave it false.")
    times = GRIDS[config.sampler.grid](process, config.sampler.steps)

    def init(key):
        return network.init(key, jnp.zeros((1, *image_shape)), jnp.zeros((1,)))

    def loss(params, batch, keys):
        def addressed(purpose):
            return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)

        x0 = images.to_model(batch["image"])
        if flip:
            flipped = jax.vmap(jax.random.bernoulli)(addressed(FLIP))
            x0 = jnp.where(flipped[:, None, None, None], x0[:, :, ::-1], x0)
        t = draw_times(process, addressed(TIME))
        eps = jax.vmap(lambda key: jax.random.normal(key, image_shape))(addressed(NOISE))
        apply = partial(network.apply, params, keys=addressed(DROPOUT))
        return denoising_loss(apply, process, prediction, weighting, x0, eps, t), process.log_snr(t)

    def denoise(params, x, t):
        return network_denoiser(partial(network.apply, params), process, prediction)(x, t)

    def draw(params, knobs, seed, indices, frames=0, progress=None):
        sampler, process, times = knobs
        denoiser = clip(network_denoiser(partial(network.apply, params), process, prediction), process)
        keys = sample_keys(seed, indices)
        return sample(sampler, denoiser, process, times, keys, image_shape, last=last, frames=frames, progress=progress)

    def noised(batch, keys, frames):
        x0 = images.to_model(batch["image"])
        eps = jax.vmap(lambda key: jax.random.normal(key, image_shape))(keys)
        times = jnp.linspace(process.t_min, process.t_max, frames - 1)
        return jnp.stack([x0, *(add_noise(process, x0, eps, t) for t in times)])

    levels = float(process.log_snr(process.t_max)), float(process.log_snr(process.t_min))
    return Task(init, loss, draw, (sampler, process, times), levels, noised, process, denoise)


TASKS: dict[str, Callable[..., Task]] = {"diffusion": diffusion}


def build(config, image_shape: tuple[int, int, int]) -> Task:
    """The config's task for images of this shape. Raises UserError where the network does not take them."""
    task = TASKS[config.task](config, image_shape)
    jax.eval_shape(task.init, jax.random.key(0))
    return task
