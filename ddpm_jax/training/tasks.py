"""Tasks: what is trained. The loop, the checkpoints and the logs know a task by the fields of `Task` alone."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import images
from ddpm_jax.construct import construct, takes
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.losses import LOSSES, WEIGHTINGS, Loss, check_chain
from ddpm_jax.diffusion.posterior import FIXED_VARIANCES
from ddpm_jax.diffusion.predictions import PREDICTIONS, PredictionType, check_alpha, network_denoiser
from ddpm_jax.diffusion.process import Process, add_noise
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import check, sample, sample_keys
from ddpm_jax.diffusion.samplers import SAMPLERS, Sampler
from ddpm_jax.diffusion.times import TIMES, Examples, Times
from ddpm_jax.diffusion.transforms import CLIPS
from ddpm_jax.errors import UserError
from ddpm_jax.models import NETWORKS
from ddpm_jax.training import inpainting

# What a random number of training is for: the last part of its address (seed, step, example, purpose).
TIME, NOISE, DROPOUT, FLIP = range(4)
LIMIT = 20.0  # log-SNR beyond which the log does not tell losses apart: a process may begin or end at infinity


class Knobs(NamedTuple):
    """The arrays that steer sampling, which never cause a recompilation. given: images to inpaint, or ()."""

    sampler: Sampler
    process: Process
    grid: jax.Array
    given: inpainting.Given | tuple = ()


class Task(NamedTuple):
    """A task built from a config.

    init(key) -> params.
    loss(params, batch, examples, history) -> (losses [B], levels [B], seen): what example b gives may depend on row b of the
    batch, its key and place in `examples`, and the history alone; its level says where it stands in the interval `levels`, over
    which the log tells losses apart.
    history: what the task remembers of the steps before, at first; arrays, or () for nothing. remember(history, seen) ->
    history, with `seen`, arrays [N, ...], of the whole global batch in its order.
    sample(params, knobs, seed, indices [B], frames, progress) -> Sampled, images [B, H, W, C] in [-1, 1]: image i depends on
    seed, indices[i] and the knobs alone.
    noised(batch, keys [B], frames) -> [frames, B, ...]: the examples on their way into noise.
    process, and denoise(params, x, t) -> Prediction, unclipped, are what plugs into the kernel.
    """

    init: Callable
    loss: Callable
    sample: Callable
    knobs: Knobs
    levels: tuple[float, float]
    noised: Callable
    process: Process
    denoise: Callable
    history: Any = ()
    remember: Callable = lambda history, seen: ()  # noqa: ARG005


class Kernel(NamedTuple):
    """What a config chooses of the kernel. grid: the sampler's times."""

    process: Process
    prediction: PredictionType
    loss: Loss
    times: Times
    sampler: Sampler
    grid: jax.Array


def kernel(config) -> Kernel:
    """Builds it. Raises ValueError where the choices do not go together."""
    own = ("beta_start", "beta_end", "sigma_min", "sigma_max")  # 0: what the process's paper has
    process = construct(PROCESSES, {key: value for key, value in config.process.items() if value or key not in own})
    prediction = construct(PREDICTIONS, config.prediction)
    check_alpha(process, prediction)
    loss = construct(LOSSES, dict(config.loss) | {"weighting": construct(WEIGHTINGS, config.loss, choice="weighting")})
    check_chain(process, loss)
    times = construct(TIMES, _with_t_min(config.times))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    jax.eval_shape(lambda keys: times.draw(process, Examples(keys, jnp.arange(2), 2), times.init(process)), keys)
    _check_variance(config, loss)
    sampler = construct(SAMPLERS, config.sampler)
    grid = construct(GRIDS, _with_t_min(config.sampler), process, choice="grid")
    check(sampler, process, grid, config.sampler.last)
    if len(grid) != config.sampler.steps:
        raise ValueError(f"the {config.sampler.grid} grid has {len(grid)} times: set config.sampler.steps={len(grid)}")
    return Kernel(process, prediction, loss, times, sampler, grid)


def _check_variance(config, loss):
    """ValueError where the sampler takes a learned variance that the loss does not teach, or steps that are not those of it."""
    name = config.sampler.variance
    if name in FIXED_VARIANCES or not takes(SAMPLERS[config.sampler.name], "variance"):
        return
    if name != loss.learns:
        usable = ", ".join([*FIXED_VARIANCES, *filter(None, [loss.learns])])
        raise ValueError(
            f"sampler.variance={name} is the second output of a network trained with loss.name=hybrid or vlb and loss.variance="
            f"{name}, which this is not: take one of {usable}"
        )
    if name == "learned" and config.sampler.steps != config.process.steps:
        raise ValueError(
            "sampler.variance=learned is of single steps of the chain: take all of them, sampler.steps="
            f"{config.process.steps}, or a fixed variance"
        )


def _with_t_min(section):
    """A t_min of 0 is the process's own."""
    return dict(section) | {"t_min": section.t_min or None}


def diffusion(config, image_shape: tuple[int, int, int]) -> Task:
    """A network that predicts the noise in images (or what it follows from) at every level of it."""
    process, prediction, objective, times, sampler, grid = kernel(config)
    learned_variance = bool(objective.learns)
    network = construct(NETWORKS, dict(config.network) | {"outputs": 1 + learned_variance})
    clip = CLIPS[config.sampler.clip]
    last = config.sampler.last
    flip = config.data.flip
    if flip and len(image_shape) != 3:
        raise UserError(f"config.data.flip mirrors images, but the data are of shape {list(image_shape)}: leave it false.")

    def init(key):
        return network.init(key, jnp.zeros((1, *image_shape)), jnp.zeros((1,)))

    def loss(params, batch, examples, history):
        def addressed(purpose):
            return jax.vmap(jax.random.fold_in, (0, None))(examples.keys, purpose)

        x0 = images.to_model(batch["image"])
        if flip:
            flipped = jax.vmap(jax.random.bernoulli)(addressed(FLIP))
            x0 = jnp.where(flipped[:, None, None, None], x0[:, :, ::-1], x0)
        t, weights = times.draw(process, examples._replace(keys=addressed(TIME)), history)
        eps = jax.vmap(lambda key: jax.random.normal(key, image_shape))(addressed(NOISE))
        apply = partial(network.apply, params, keys=addressed(DROPOUT))
        losses = objective.of(apply, process, prediction, x0, eps, t)
        return weights * losses, process.log_snr(t), (t, losses) if times.update else ()

    def remember(history, seen):
        return times.update(history, *seen) if times.update else ()

    def denoise(params, x, t):
        return network_denoiser(partial(network.apply, params), process, prediction, learned_variance=learned_variance)(x, t)

    def draw(params, knobs, seed, indices, frames=0, progress=None):
        sampler, process, grid, given = knobs
        denoiser = network_denoiser(partial(network.apply, params), process, prediction, learned_variance=learned_variance)
        if given:
            sampler, denoiser = inpainting.transformed(config.inpaint, given, indices, sampler, denoiser, process, grid[-1])
        denoiser, keys = clip(denoiser, process), sample_keys(seed, indices)
        return sample(sampler, denoiser, process, grid, keys, image_shape, last=last, frames=frames, progress=progress)

    def noised(batch, keys, frames):
        x0 = images.to_model(batch["image"])
        eps = jax.vmap(lambda key: jax.random.normal(key, image_shape))(keys)
        times = jnp.linspace(process.t_min.training, process.t_max, frames - 1)
        return jnp.stack([x0, *(add_noise(process, x0, eps, t) for t in times)])

    ends = jnp.clip(process.log_snr(jnp.stack([process.t_max, process.t_min.training])), -LIMIT, LIMIT)
    levels = float(ends[0]), float(ends[1])
    knobs = Knobs(sampler, process, grid)
    return Task(init, loss, draw, knobs, levels, noised, process, denoise, times.init(process), remember)


TASKS: dict[str, Callable[..., Task]] = {"diffusion": diffusion}


def build(config, image_shape: tuple[int, int, int]) -> Task:
    """The config's task for images of this shape. Raises UserError where the network does not take them."""
    task = TASKS[config.task](config, image_shape)
    jax.eval_shape(task.init, jax.random.key(0))
    return task
