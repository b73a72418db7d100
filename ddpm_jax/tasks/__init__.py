"""Tasks: what is trained, one file each."""

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax

from ddpm_jax.diffusion.keys import Purpose, key_of
from ddpm_jax.tasks import classifier, diffusion
from ddpm_jax.tasks.task import Task

TASKS: dict[str, Callable[..., Task]] = {"diffusion": diffusion.diffusion, "classifier": classifier.classifier}


def build(
    config,
    image_shape: tuple[int, int, int],
    num_classes: int = 0,
    guides: Mapping[str, Any] = types.MappingProxyType({}),
    class_names: tuple[str, ...] = (),
) -> Task:
    """The config's task for images of this shape, labelled 0 .. num_classes - 1 (0: not known).

    guides: the runs (`run.Run`) that config.GUIDES name, by their keys. class_names: of the labels; (): not known. Raises
    UserError where the network does not take the images, or a guide does not go with it.
    """
    task = TASKS[config.task](config, image_shape, num_classes, guides, class_names)
    jax.eval_shape(task.init, key_of(0, Purpose.INIT))
    return task
