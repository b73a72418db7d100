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
from ddpm_jax.tasks.noising import DROPOUT, LABEL, on_its_way, training_noise
from ddpm_jax.tasks.task import Task


class Knobs(NamedTuple):
    """The arrays that steer sampling, which never cause a recompilation.

    given: images to inpaint, or (). start [N, ...]: sample i begins at the first time of the grid in the state i mod N; or ().
    """

    sampler: Sampler
    process: Process
    grid: jax.Array
    labels: jax.Array
    guidance: guided.Knobs
    given: inpainting.Given | tuple = ()
    start: jax.Array | tuple = ()


def diffusion(
    config, image_shape: tuple[int, int, int], num_classes: int, guides: Mapping[str, Any], class_names: tuple[str, ...]
) -> Task:
    """A network that predicts the noise in images (or what it follows from) at every level of it.

    With cond.labels it is shown their labels, in training the null label in place of a share cond.dropout of them: so it is the
    model of every class and, with the null label, the unconditional one (Ho & Salimans 2022, algorithm 1).
    """
    process, prediction, objective, times, sampler, grid = choose(config)
    learned_variance = bool(objective.learns)
    classes = num_classes if config.cond.labels else 0
    guided.check_guides(guides, config, process, image_shape, num_classes, class_names)
    labels_of_samples, label_names = guided.labels_of_samples(config, num_classes, guides, class_names)
    network = construct(NETWORKS, dict(config.network) | {"outputs": 1 + learned_variance, "num_classes": classes})
    noisy = training_noise(config, process, times, image_shape)
    last = config.sampler.last
    if config.sampler.save == "png" and len(image_shape) != 3:
        raise UserError(f"config.sampler.save=png is for images, but the data are of shape {list(image_shape)}: take npz.")

    def init(key):
        return network.init(key, jnp.zeros((1, *image_shape)), jnp.zeros((1,)))

    def loss(params, batch, examples, history, training=True):
        x0, eps, t, weights = noisy(batch, examples, history, training)
        given = {}
        if classes:
            share = config.cond.dropout if training else 0.0
            dropped = jax.vmap(jax.random.bernoulli, (0, None))(examples.of(LABEL), share)
            given["labels"] = jnp.where(dropped, classes, batch["label"])
        apply = partial(network.apply, params, keys=examples.of(DROPOUT) if training else None, **given)
        decoder = bins if batch["image"].dtype == jnp.uint8 else density  # of pixels, or of points
        losses = objective.of(apply, process, prediction, x0, eps, t, decoder)
        return weights * losses, process.log_snr(t), (t, losses) if times.update else ()

    def denoiser(params, labels=None, process=process):
        apply = partial(network.apply, params, **({} if labels is None else {"labels": labels}))
        return network_denoiser(apply, process, prediction, learned_variance=learned_variance)

    def course(params, knobs, seed, indices, frames=0, up=False):
        sampler, process, grid = knobs.sampler, knobs.process, knobs.grid
        labels = knobs.labels[indices % len(knobs.labels)] if labels_of_samples else None
        bind = lambda labels: denoiser(params, labels if classes else None, process)  # noqa: E731
        denoise = guided.by_pairs(bind, labels, classes, process, prediction, config.guidance, guides, knobs.guidance)
        if knobs.given:
            sampler, denoise = inpainting.transformed(config, knobs.given, indices, sampler, denoise, process, grid[-1])
        denoise = CLIPS[config.sampler.clip](denoise, process)
        denoise = guided.by_classifier(denoise, labels, process, config.guidance, guides, knobs.guidance)
        x = knobs.start[indices % len(knobs.start)] if len(knobs.start) else None
        if up:
            return encoding(sampler, denoise, process, grid[::-1], x, frames=frames)
        keys = sample_keys(seed, indices, config.addresses)
        return sampling(sampler, denoise, process, grid, keys, image_shape, last=last, x=x, frames=frames)

    knobs = Knobs(sampler, process, grid, jnp.asarray(labels_of_samples, jnp.int32), guided.knobs(config.guidance, guides))
    shared = on_its_way(process, times, image_shape)
    shared |= {"labels": labels_of_samples, "label_names": label_names}
    return Task(init, loss, course, knobs, process=process, denoiser=denoiser, **shared)
