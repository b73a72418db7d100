"""What steers samples besides their noise: labels, and guidance by the model itself or by other runs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.diffusion.guidance import batched_pair, classifier_free, dynamic_thresholding
from ddpm_jax.diffusion.predictions import Denoiser, PredictionType
from ddpm_jax.diffusion.process import Process
from ddpm_jax.errors import UserError


class Knobs(NamedTuple):
    """The numbers of config.guidance, and the parameters of the weaker run or ()."""

    scale: jax.Array
    low: jax.Array
    high: jax.Array
    rescale: jax.Array
    threshold: jax.Array
    weak: Any


def knobs(section: ConfigDict, guides: Mapping[str, Any]) -> Knobs:
    high = section.interval_high or jnp.inf
    numbers = (section.scale, section.interval_low, high, section.rescale, section.threshold)
    return Knobs(*map(jnp.asarray, numbers), guides["guidance.weak"].params if section.weak else ())


def guided(
    bind: Callable[[jax.Array | None], Denoiser],
    labels: jax.Array | None,
    null_label: int,
    process: Process,
    prediction: PredictionType,
    section: ConfigDict,
    guides: Mapping[str, Any],
    knobs: Knobs,
) -> Denoiser:
    """The denoiser of samples with these labels [B], by config.guidance. bind(labels) is the model's.

    At the scale 1 guidance would change nothing, and costs nothing.
    """
    denoise = bind(labels)
    if section.scale != 1:
        if section.weak:
            strong, weak = denoise, guides["guidance.weak"].task.denoiser(knobs.weak, labels, process)
            pair = lambda x, t: (strong(x, t), weak(x, t))  # noqa: E731
        else:
            pair = batched_pair(bind, labels, jnp.full_like(labels, null_label))
        rescale = {"rescale": knobs.rescale, "prediction": prediction} if section.rescale else {}
        denoise = classifier_free(pair, process, scale=knobs.scale, low=knobs.low, high=knobs.high, **rescale)
    if section.threshold:
        denoise = dynamic_thresholding(denoise, process, percentile=knobs.threshold)
    return denoise


def labels_of_samples(config: ConfigDict, num_classes: int) -> tuple[int, ...]:
    """What sample i gets the (i mod their number)-th of; () where the run is not conditional.

    Raises UserError where the data have no labels to speak of, or not these.
    """
    if not config.cond.labels:
        return ()
    if num_classes < 2:
        raise UserError(
            f"config.cond.labels shows the network labels, but the data set {config.data.name} has "
            f"{'one class' if num_classes else 'none'}: leave out the variant cond, or take data with labels."
        )
    unknown = [label for label in config.sampler.labels if label >= num_classes]
    if unknown:
        raise UserError(f"config.sampler.labels has {unknown[0]}, but the labels of this run are 0 to {num_classes - 1}.")
    return config.sampler.labels or tuple(range(num_classes))


def check_guides(guides: Mapping[str, Any], process: Process, image_shape: tuple[int, ...], classes: int) -> None:
    """UserError where a run does not go with the one that it is to guide, whose network is shown so many classes."""
    for key, run in guides.items():
        its_classes = run.num_classes if run.config.cond.labels else 0
        if run.image_shape != tuple(image_shape):
            differ = f"has images of {list(run.image_shape)}, and the run that it is to guide of {list(image_shape)}"
        elif not _same(run.process, process):
            differ = f"is of another process ({run.config.process.name}) than the run that it is to guide"
        elif its_classes != classes:
            differ = f"is shown {its_classes or 'no'} classes, and the run that it is to guide {classes or 'none'}"
        else:
            continue
        raise UserError(f"The run in {run.workdir}, config.{key}, {differ}: give one of the same data, process and labels.")


def _same(a, b) -> bool:
    """Whether two pytrees of known arrays are equal."""
    same_kind = jax.tree.structure(a) == jax.tree.structure(b)
    return same_kind and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
