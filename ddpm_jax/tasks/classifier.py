"""The task of a classifier of noisy images, which guides other runs."""

import jax
import jax.numpy as jnp

from ddpm_jax.construct import construct
from ddpm_jax.diffusion.process import add_noise, check_times
from ddpm_jax.errors import UserError
from ddpm_jax.models import NETWORKS
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.tasks import conditions
from ddpm_jax.tasks.choices import choose
from ddpm_jax.tasks.noising import DROPOUT, on_its_way, training_noise
from ddpm_jax.tasks.spaces import space_of
from ddpm_jax.tasks.task import NO_SAMPLES, Task


def classifier(config, image_shape: tuple[int, int, int], num_classes: int, *_) -> Task:
    """A network that tells the labels of images at every level of noise, to guide the samples of a run on the same process.

    Its loss is the cross-entropy, in nats (Dhariwal & Nichol 2021, section 4). It is shown x as the prediction type shows it.
    """
    process, prediction, _, times, *_ = choose(config)
    if config.network.name != "unet":
        raise UserError(f"The classifier is half of a U-Net: config.network.name must be unet, found {config.network.name}.")
    conditions.check_labels(config, num_classes)
    space = space_of(config, image_shape)
    network = Classifier(construct(NETWORKS, config.network), num_classes)
    noisy = training_noise(config, process, times, space, image_shape)

    def init(key):
        return network.init(key, jnp.zeros((1, *space.shape)), jnp.zeros((1,)))

    def log_prob(params, frozen, x, t, labels, process=process, keys=None):  # noqa: ARG001 - the signature of all tasks
        check_times(process, t=t)
        time = jnp.broadcast_to(process.time_input(t), x.shape[:1])
        logits = network.apply(params, prediction.input(process, x, t), time, keys)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    def loss(params, frozen, batch, examples, history, training=True):
        x0, eps, t, weights = noisy(frozen, batch, examples, history, training)
        keys = examples.of(DROPOUT) if training else None
        losses = -log_prob(params, frozen, add_noise(process, x0, eps, t), t, batch["label"], keys=keys)
        return weights * losses, process.log_snr(t), (t, losses) if times.update else ()

    def denoiser(*_):
        raise UserError(NO_SAMPLES)

    shared = on_its_way(process, times, space)
    return Task(init, loss, None, (), denoiser=denoiser, log_prob=log_prob, **shared)
