"""The mean loss over examples that are not trained on, measured while training."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.construct import construct
from ddpm_jax.data import SOURCES, Source, Streamed
from ddpm_jax.diffusion.keys import Purpose, keys_of
from ddpm_jax.diffusion.times import Examples
from ddpm_jax.errors import UserError
from ddpm_jax.tasks.task import Task
from ddpm_jax.training import parallel


def open_held_out(config: ConfigDict, source: Source | Streamed) -> Source | Streamed | None:
    """The split config.eval.split of the data that are trained on, `source`; None where config.eval.loss_every is 0.

    Raises UserError where the data have no such split, or the steps of the measurements are not among those that are logged.
    """
    c = config.eval
    if not c.loss_every:
        return None
    if c.loss_every % config.train.log_every:
        raise UserError(
            f"config.eval.loss_every is {c.loss_every}, and a line is logged every {config.train.log_every} steps: take a "
            "multiple of config.train.log_every."
        )
    try:
        held_out = construct(SOURCES, dict(config.data) | {"split": c.split})
    except UserError as error:
        raise UserError(
            f"config.eval.loss_every={c.loss_every} measures the loss on the split {c.split!r}, config.eval.split, which "
            f"cannot be read: {error} Leave config.eval.loss_every at 0, or give another split."
        ) from error
    if (held_out.image_shape, held_out.num_classes) != (source.image_shape, source.num_classes):
        raise UserError(
            f"The split {c.split!r} has images of {list(held_out.image_shape)} in {held_out.num_classes} classes, and the one "
            f"that is trained on {list(source.image_shape)} in {source.num_classes}: give another config.eval.split."
        )
    return held_out


def make_loss(
    task: Task, config: ConfigDict, held_out: Source | Streamed, devices: Sequence
) -> Callable[[Any, Any], float | None]:
    """A function loss(params, frozen) -> the mean loss over the first config.eval.loss_examples of the held-out data.

    It is the loss of training, but without dropout of features or labels, and without mirrored images. The times and the noise
    of an example are addressed by (eval.seed, example): so two steps, or two runs, are compared on the same ones, and the
    result does not depend on the batch or the devices, but for rounding. None where it is not finite.
    """
    c = config.eval
    count = min(c.loss_examples or held_out.num_examples, held_out.num_examples)
    size = -(-min(c.batch_size, count) // len(devices)) * len(devices)

    def one_device(params, frozen, batch, places):
        keys = keys_of(c.seed, Purpose.HELD_OUT, places, config.addresses)
        return task.loss(params, frozen, batch, Examples(keys, places, count), task.history, training=False)[0]

    compute = parallel.over_devices(one_device, devices, (None, None, 0, 0), 0)

    def loss(params, frozen):
        losses = []
        for first in range(0, count, size):
            places = np.minimum(np.arange(first, first + size, dtype=np.int32), count - 1)  # the last batch is filled up
            batch = {name: parallel.split(array, devices) for name, array in held_out.gather(places).items()}
            losses.append(np.concatenate(jax.device_get(compute(params, frozen, batch, parallel.split(places, devices)))))
        mean = float(np.concatenate(losses)[:count].mean(dtype=np.float64))
        return mean if math.isfinite(mean) else None

    return loss
