"""What steers samples besides their noise: labels, and guidance by the model itself or by other runs."""

from collections.abc import Callable, Mapping, Sequence
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
from ddpm_jax.spelling import nearest

# Of classifier guidance: of the score, for every sampler; or of the mean of ancestral steps, which the others see as the score.
FORMS: dict[str, Callable[..., Denoiser]] = {"score": classifier_guidance, "mean": mean_shift}


class Knobs(NamedTuple):
    """The numbers of config.guidance, and the parameters of the weaker run and of the classifier, or ()."""

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
    params = (guides[key].params if key in guides else () for key in ("guidance.weak", "guidance.classifier"))
    return Knobs(*map(jnp.asarray, numbers), *params)


def by_pairs(
    bind: Callable[[jax.Array | None], Denoiser],
    labels: jax.Array | None,
    null_label: int,
    process: Process,
    prediction: PredictionType,
    section: ConfigDict,
    guides: Mapping[str, Any],
    knobs: Knobs,
) -> Denoiser:
    """The model with these labels [B], guided by itself or by a weaker run as config.guidance says. bind(labels): the model.

    At the scale 1 classifier-free guidance would change nothing, and costs nothing.
    """
    denoise = bind(labels)
    if section.scale != 1 and not section.classifier:
        if section.weak:
            strong, weak = denoise, guides["guidance.weak"].task.denoiser(knobs.weak, labels, process)
            pair = lambda x, t: (strong(x, t), weak(x, t))  # noqa: E731
        else:
            pair = batched_pair(bind, labels, jnp.full_like(labels, null_label))
        rescale = {"rescale": knobs.rescale, "prediction": prediction} if section.rescale else {}
        denoise = classifier_free(pair, process, scale=knobs.scale, low=knobs.low, high=knobs.high, **rescale)
    return dynamic_thresholding(denoise, process, percentile=knobs.threshold) if section.threshold else denoise


def by_classifier(
    denoise: Denoiser,
    labels: jax.Array | None,
    process: Process,
    section: ConfigDict,
    guides: Mapping[str, Any],
    knobs: Knobs,
) -> Denoiser:
    """A denoiser guided by the classifier of config.guidance, where there is one.

    It comes after clipping, as in Dhariwal & Nichol's code: its shift of x0 is of the score, and not to be cut.
    """
    if not section.classifier:
        return denoise
    log_prob = lambda x, t: guides["guidance.classifier"].task.log_prob(knobs.classifier, x, t, labels, process)  # noqa: E731

    def guide(x, t):
        scale = where_it_acts(process, t, knobs.low, knobs.high, knobs.scale, 0.0)
        return FORMS[section.form](denoise, process, log_prob, scale=scale)(x, t)

    return guide


def check_labels(config: ConfigDict, num_classes: int) -> None:
    """UserError where the data have no labels to speak of, and the network is to be shown or to find them."""
    if num_classes < 2:
        raise UserError(
            f"The network is to {'tell' if config.task == 'classifier' else 'be shown'} labels (config.task, "
            f"config.cond.labels), but the data set {config.data.name} has {'one class' if num_classes else 'none'}: take data "
            "with labels, or leave out the variant cond."
        )


def labels_of_samples(
    config: ConfigDict, num_classes: int, guides: Mapping[str, Any], class_names: tuple[str, ...]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """What sample i gets the (i mod their number)-th of, and what these are called, () where that is not known.

    No labels where neither the network nor a classifier asks for them. Raises UserError where there are none, or not these.
    """
    if config.cond.labels:
        check_labels(config, num_classes)
    elif config.guidance.classifier:
        classifier = guides["guidance.classifier"]
        num_classes, class_names = classifier.num_classes, class_names or classifier.class_names
    else:
        return (), ()
    labels = numbers(config.sampler.labels, num_classes, class_names) or tuple(range(num_classes))
    return labels, tuple(class_names[label] for label in labels) if class_names else ()


def numbers(labels: Sequence[int | str], num_classes: int, class_names: Sequence[str]) -> tuple[int, ...]:
    """Labels that are told as numbers or by the names of their classes. Raises UserError for those that the run has not."""
    called = {name: label for label, name in enumerate(class_names)}
    found = [called.get(label, label) for label in labels]
    for label in found:
        if isinstance(label, str) or not 0 <= label < num_classes:
            near = nearest(label, called) if isinstance(label, str) else []
            meant = f" Did you mean {near[0]}?" if near else ""
            if str(label) in called:
                meant = f" A number is a label: that of the class {label} is {called[str(label)]}."
            known = f"0 to {num_classes - 1}" + (f" ({identity.numbered(class_names)})" if called else ", and have no names")
            raise UserError(f"config.sampler.labels has {label!r}, but the labels of this run are {known}.{meant}")
    return tuple(found)


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
