"""The task of a diffusion model: a network that predicts the noise in images."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.construct import construct
from ddpm_jax.diffusion.bound import bins, density
from ddpm_jax.diffusion.predictions import network_denoiser
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.sample import encoding, sample_keys, sampling
from ddpm_jax.diffusion.samplers import Sampler
from ddpm_jax.diffusion.transforms import CLIPS
from ddpm_jax.errors import UserError
from ddpm_jax.models import NETWORKS
from ddpm_jax.tasks import guided, inpainting
from ddpm_jax.tasks.choices import choose
from ddpm_jax.tasks.conditions import Condition, conditioning, dropped, in_turn, repeated
from ddpm_jax.tasks.noising import DROPOUT, LABEL, on_its_way, training_noise
from ddpm_jax.tasks.spaces import space_of
from ddpm_jax.tasks.task import Task


class Knobs(NamedTuple):
    """The arrays that steer sampling, which never cause a recompilation.

    condition: rows [N, ...], sample i has row i mod N. given: images to inpaint, or (). start [N, ...]: sample i begins at the
    first time of the grid in the state i mod N; or ().
    """

    sampler: Sampler
    process: Process
    grid: jax.Array
    condition: Condition
    guidance: guided.Knobs
    given: inpainting.Given | tuple = ()
    start: jax.Array | tuple = ()


def diffusion(
    config, image_shape: tuple[int, int, int], num_classes: int, guides: Mapping[str, Any], class_names: tuple[str, ...]
) -> Task:
    """A network that predicts the noise in images (or what it follows from) at every level of it.

    Where it is shown a condition, a share cond.dropout of the training examples has the null one in place of it: so it is the
    model of every condition and, with the null one, the unconditional one (Ho & Salimans 2022, algorithm 1).
    """
    process, prediction, objective, times, sampler, grid = choose(config)
    learned_variance = bool(objective.learns)
    guided.check_guides(guides, config, process, image_shape, num_classes, class_names)
    told, space = conditioning(config, num_classes, class_names, guides), space_of(config, image_shape)
    network = construct(NETWORKS, dict(config.network) | {"outputs": 1 + learned_variance, "num_classes": 0} | told.network)
    noisy = training_noise(config, process, times, space, image_shape)
    last, clip = config.sampler.last, config.sampler.clip
    if config.sampler.save == "png" and len(image_shape) != 3:
        raise UserError(f"config.sampler.save=png is for images, but the data are of shape {list(image_shape)}: take npz.")
    if clip != "none" and not space.is_data:
        raise UserError(f"config.sampler.clip={clip} is of pixels, and the model's states are none: take none.")

    def shown(condition, count):
        """What the network is told beside x and t: the condition, the null one in place of none."""
        if not told.shown:
            return {}
        return {"condition": repeated(told.null, count) if condition is None else condition}

    def init(key):
        return network.init(key, jnp.zeros((1, *space.shape)), jnp.zeros((1,)), **shown(None, 1))

    def loss(params, frozen, batch, examples, history, training=True):
        x0, eps, t, weights = noisy(frozen, batch, examples, history, training)
        condition = told.of(batch)
        if told.shown and training:
            drop = jax.vmap(jax.random.bernoulli, (0, None))(examples.of(LABEL), config.cond.dropout)
            condition = dropped(condition, told.null, drop)
        apply = partial(network.apply, params, keys=examples.of(DROPOUT) if training else None, **shown(condition, len(x0)))
        of_levels = space.is_data and batch["image"].dtype == jnp.uint8
        losses = objective.of(apply, process, prediction, x0, eps, t, bins if of_levels else density)
        return weights * losses, process.log_snr(t), (t, losses) if times.update else ()

    def denoiser(params, frozen, condition=None, process=process):  # noqa: ARG001 - the signature of all tasks
        def apply(x, time):
            return network.apply(params, x, time, **shown(condition, len(x)))

        return network_denoiser(apply, process, prediction, learned_variance=learned_variance)

    def course(params, frozen, knobs, seed, indices, frames=0, up=False):
        sampler, process, grid = knobs.sampler, knobs.process, knobs.grid
        condition = in_turn(knobs.condition, indices)
        bind = lambda condition: denoiser(params, frozen, condition, process)  # noqa: E731
        denoise = guided.by_pairs(bind, condition, told.null, process, prediction, config.guidance, guides, knobs.guidance)
        decode = partial(space.decode, frozen)
        if knobs.given:
            of_state = None if space.is_data else decode
            given = config, knobs.given, indices, sampler, denoise, process, grid[-1], of_state
            sampler, denoise = inpainting.transformed(*given)
        denoise = CLIPS[clip](denoise, process)
        denoise = guided.by_classifier(denoise, condition, process, config.guidance, guides, knobs.guidance)
        x = knobs.start[indices % len(knobs.start)] if len(knobs.start) else None
        if up:
            return encoding(sampler, denoise, process, grid[::-1], x, frames=frames)
        keys = sample_keys(seed, indices, config.addresses)
        states = sampling(sampler, denoise, process, grid, keys, space.shape, last=last, x=x, frames=frames)
        if space.is_data:
            return states

        def finish(carry):
            """As images, with the known pixels of given ones."""
            drawn = states.finish(carry)
            x = decode(drawn.x)
            film = drawn.frames if drawn.frames is None else jax.lax.map(decode, drawn.frames)
            return drawn._replace(x=inpainting.pasted(knobs.given, indices, x) if knobs.given else x, frames=film)

        return states._replace(finish=finish)

    knobs = Knobs(sampler, process, grid, told.rows, guided.knobs(config.guidance, guides))
    return Task(init, loss, course, knobs, denoiser=denoiser, condition=told, **on_its_way(process, times, space))
