"""What steers samples besides their noise and their conditions: guidance by the model itself or by other runs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax.data import identity
from ddpm_jax.diffusion.guidance import (
    batched_pair,
    classifier_free,
    classifier_guidance,
    dynamic_thresholding,
    mean_shift,
    where_it_acts,
)
from ddpm_jax.diffusion.predictions import Denoiser, PredictionType
from ddpm_jax.diffusion.process import Process
from ddpm_jax.errors import UserError
from ddpm_jax.tasks.conditions import Condition, count, repeated

# Of classifier guidance: of the score, for every sampler; or of the mean of ancestral steps, which the others see as the score.
FORMS: dict[str, Callable[..., Denoiser]] = {"score": classifier_guidance, "mean": mean_shift}


class Knobs(NamedTuple):
    """The numbers of config.guidance, and (parameters, frozen ones) of the weaker run and of the classifier, or ()."""

    scale: jax.Array
    low: jax.Array
    high: jax.Array
    rescale: jax.Array
    threshold: jax.Array
    weak: Any
    classifier: Any


def knobs(section: ConfigDict, guides: Mapping[str, Any]) -> Knobs:
    high = section.interval_high or jnp.inf
    numbers = (section.scale, section.interval_low, high, section.rescale, section.threshold)
    keys = ("guidance.weak", "guidance.classifier")
    params = ((guides[key].params, guides[key].state.frozen) if key in guides else () for key in keys)
    return Knobs(*map(jnp.asarray, numbers), *params)


def by_pairs(
    bind: Callable[[Condition], Denoiser],
    condition: Condition,
    null: Condition,
    process: Process,
    prediction: PredictionType,
    section: ConfigDict,
    guides: Mapping[str, Any],
    knobs: Knobs,
) -> Denoiser:
    """The model of a condition, guided by itself or by a weaker run as config.guidance says.

    bind(condition [B, ...]): the model; null: the row of the unconditional one.

    At the scale 1 classifier-free guidance would change nothing, and costs nothing.
    """
    denoise = bind(condition)
    if section.scale != 1 and not section.classifier:
        if section.weak:
            strong, weak = denoise, guides["guidance.weak"].task.denoiser(*knobs.weak, condition, process)
            pair = lambda x, t: (strong(x, t), weak(x, t))  # noqa: E731
        else:
            pair = batched_pair(bind, condition, repeated(null, count(condition)))
        rescale = {"rescale": knobs.rescale, "prediction": prediction} if section.rescale else {}
        denoise = classifier_free(pair, process, scale=knobs.scale, low=knobs.low, high=knobs.high, **rescale)
    return dynamic_thresholding(denoise, process, percentile=knobs.threshold) if section.threshold else denoise


def by_classifier(
    denoise: Denoiser,
    labels: Condition,
    process: Process,
    section: ConfigDict,
    guides: Mapping[str, Any],
    knobs: Knobs,
) -> Denoiser:
    """A denoiser guided by the classifier of config.guidance, where there is one, to labels [B].

    It comes after clipping, as in Dhariwal & Nichol's code: its shift of x0 is of the score, and not to be cut.
    """
    if not section.classifier:
        return denoise
    log_prob = lambda x, t: guides["guidance.classifier"].task.log_prob(*knobs.classifier, x, t, labels, process)  # noqa: E731

    def guide(x, t):
        scale = where_it_acts(process, t, knobs.low, knobs.high, knobs.scale, 0.0)
        return FORMS[section.form](denoise, process, log_prob, scale=scale)(x, t)

    return guide


SAME_IMAGES = {"cifar10_raw": "cifar10"}  # data sets by another name


def _data_of(config: ConfigDict) -> str:
    name = config.data.name
    return f"toy2d {config.data.pattern}" if name == "toy2d" else SAME_IMAGES.get(name, name)


def check_guides(
    guides: Mapping[str, Any],
    config: ConfigDict,
    process: Process,
    image_shape: tuple[int, ...],
    num_classes: int,
    class_names: tuple[str, ...],
) -> None:
    """UserError where a run does not go with the one that it is to guide, of this config, process and data."""
    for key, run in guides.items():
        classifies = key == "guidance.classifier"
        shown, its_shown = config.cond.labels, classifies or run.config.cond.labels
        classes, its_classes = num_classes if shown or classifies else 0, run.num_classes if its_shown else 0
        if classifies != (run.config.task == "classifier"):
            wanted = "classifier" if classifies else "diffusion"
            raise UserError(f"The run in {run.workdir}, config.{key}, has config.task={run.config.task}: give one of {wanted}.")
        if run.image_shape != tuple(image_shape):
            differ = f"has images of {list(run.image_shape)}, and the run that it is to guide of {list(image_shape)}"
        elif not _same(run.process, process):
            differ = f"is of another process ({run.config.process.name}) than the run that it is to guide"
        elif _data_of(run.config) != _data_of(config):
            differ = f"has the data {_data_of(run.config)}, and the run that it is to guide {_data_of(config)}"
        elif class_names and run.class_names and class_names != run.class_names:
            others = identity.differences({"classes": run.class_names}, {"classes": class_names})
            differ = f"has other classes than the run that it is to guide ({'; '.join(others)})"
        elif its_classes != classes and (shown or not classifies or classes):
            differ = f"knows {its_classes or 'no'} classes, and the run that it is to guide {classes or 'none'}"
        else:
            continue
        raise UserError(f"The run in {run.workdir}, config.{key}, {differ}: give one of the same data, process and labels.")


def _same(a, b) -> bool:
    """Whether two pytrees of known arrays are equal."""
    same_kind = jax.tree.structure(a) == jax.tree.structure(b)
    return same_kind and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))
