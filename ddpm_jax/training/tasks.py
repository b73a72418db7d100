"""Tasks: what is trained. The loop, the checkpoints and the logs know a task by the fields of `Task` alone."""

import contextlib
import types
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import images
from ddpm_jax.construct import arguments, construct
from ddpm_jax.diffusion.bound import bins, density
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.keys import Purpose, key_of
from ddpm_jax.diffusion.losses import LOSSES, WEIGHTINGS, Loss, check_chain
from ddpm_jax.diffusion.posterior import FIXED_VARIANCES
from ddpm_jax.diffusion.predictions import PREDICTIONS, PredictionType, check_alpha, network_denoiser
from ddpm_jax.diffusion.process import Process, add_noise, check_times
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import Course, Sampled, check, encoding, sample_keys, sampling, whole
from ddpm_jax.diffusion.samplers import SAMPLERS, Sampler
from ddpm_jax.diffusion.times import TIMES, Examples, Times
from ddpm_jax.diffusion.transforms import CLIPS
from ddpm_jax.errors import UserError
from ddpm_jax.models import NETWORKS
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.training import guided, inpainting

# What a random number of training is for: the last part of its address (seed, step, example, purpose).
TIME, NOISE, DROPOUT, FLIP, LABEL = range(5)
NO_SAMPLES = (
    "A classifier (config.task) has no denoiser and nothing to sample: let it guide another run, "
    "--config.guidance.classifier=<its directory>."
)
LIMIT = 20.0  # log-SNR beyond which the log does not tell losses apart: a process may begin or end at infinity


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


class Task(NamedTuple):
    """A task built from a config.

    init(key) -> params.
    loss(params, batch, examples, history, training=True) -> (losses [B], levels [B], seen): what example b gives may depend on
    row b of the batch, its key and place in `examples`, and the history alone; its level says where it stands in the interval
    `levels`, over which the log tells losses apart. Where it is not training, nothing is dropped and no image mirrored.
    history: what the task remembers of the steps before, at first; arrays, or () for nothing. remember(history, seen) ->
    history, with `seen`, arrays [N, ...], of the whole global batch in its order.
    course(params, knobs, seed, indices [B], frames, up) -> the Course to images [B, H, W, C] in [-1, 1]: image i depends on
    seed, indices[i], its label and the knobs alone; up: from knobs.start up the grid, to its noise. None where there is nothing
    to sample. sample, with the same arguments: all of it, Sampled.
    noised(batch, keys [B], frames) -> [frames, B, ...]: the examples on their way into noise.
    process, and denoiser(params, labels, process) -> Denoiser, unclipped, are what plugs into the kernel. labels [B]: of a
    conditional network; None: the null label.
    labels: those that samples get in turn, sample i labels[i mod len(labels)]; () where nothing asks for labels. label_names:
    what they are called, or ().
    log_prob(params, x, t, labels [B], process) -> [B], of a classifier: log p(label | x at t).
    """

    init: Callable
    loss: Callable
    course: Callable[..., Course] | None
    knobs: Any
    levels: tuple[float, float]
    noised: Callable
    process: Process
    denoiser: Callable
    history: Any = ()
    remember: Callable = lambda history, seen: ()  # noqa: ARG005
    labels: tuple[int, ...] = ()
    label_names: tuple[str, ...] = ()
    log_prob: Callable | None = None

    def sample(self, *args, **kwargs) -> Sampled:
        return whole(self.course(*args, **kwargs))


class Kernel(NamedTuple):
    """What a config chooses of the kernel. grid: the sampler's times."""

    process: Process
    prediction: PredictionType
    loss: Loss
    times: Times
    sampler: Sampler
    grid: jax.Array


@contextlib.contextmanager
def _about(*keys):
    """A ValueError raised within is of these keys, and sections of them: `config.validate` names them."""
    try:
        yield
    except ValueError as error:
        error.keys = keys
        raise


def kernel(config) -> Kernel:
    """Builds it. Raises ValueError where the choices do not go together, with the keys concerned as its `keys`."""
    with _about("process."):
        process = construct(PROCESSES, config.process)
    with _about("process.", "prediction.name"):
        prediction = construct(PREDICTIONS, config.prediction)
        check_alpha(process, prediction)
    with _about("process.", "loss.name", "loss.variance"):
        loss = construct(LOSSES, dict(config.loss) | {"weighting": construct(WEIGHTINGS, config.loss, choice="weighting")})
        check_chain(process, loss)
    with _about("prediction.name", "prediction.sigma_data", "loss.weighting", "loss.sigma_data"):
        of_network = arguments(PREDICTIONS[config.prediction.name], config.prediction).get("sigma_data")
        of_loss = arguments(WEIGHTINGS[config.loss.weighting], config.loss).get("sigma_data")
        if None not in (of_network, of_loss) and of_network != of_loss:
            raise ValueError(f"prediction.sigma_data={of_network} and loss.sigma_data={of_loss} differ")
    with _about("process.", "times."):
        t_min = arguments(TIMES[config.times.name], config.times).get("t_min")
        if t_min is not None and t_min >= float(process.t_max):
            raise ValueError(f"times.t_min={t_min} leaves no time below t_max = {float(process.t_max):.9g}")
        times = construct(TIMES, config.times)
        keys = jax.eval_shape(lambda: jax.random.split(key_of(0, Purpose.TRAINING), 2))
        jax.eval_shape(lambda keys: times.draw(process, Examples(keys, jnp.arange(2), 2), times.init(process)), keys)
    with _about("loss.name", "loss.variance", "sampler.name", "sampler.variance", "sampler.steps", "process.steps"):
        _check_variance(config, process, loss)
    with _about("sampler.name"):
        sampler = construct(SAMPLERS, config.sampler)
    with _about("process.name", "process.steps", "sampler.grid", "sampler.steps"):
        grid = construct(GRIDS, config.sampler, process, choice="grid")
    with _about("process.name", "process.steps", "sampler.name", "sampler.grid", "sampler.steps", "sampler.last"):
        check(sampler, process, grid, config.sampler.last)
    with _about("sampler.grid", "sampler.steps", "sampler.times", "sampler.sections"):
        if len(grid) != config.sampler.steps:
            raise ValueError(f"the {config.sampler.grid} grid has {len(grid)} times: set config.sampler.steps={len(grid)}")
    return Kernel(process, prediction, loss, times, sampler, grid)


def _check_variance(config, process, loss):
    """ValueError where the sampler takes a learned variance that the loss does not teach, or steps that are not those of it."""
    name = arguments(SAMPLERS[config.sampler.name], config.sampler).get("variance")
    if name is None or name in FIXED_VARIANCES:
        return
    if name != loss.learns:
        usable = ", ".join([*FIXED_VARIANCES, *filter(None, [loss.learns])])
        raise ValueError(
            f"sampler.variance={name} is the second output of a network trained with loss.name=hybrid or vlb and loss.variance="
            f"{name}, which this is not: take one of {usable}"
        )
    if name == "learned" and config.sampler.steps != process.num_steps:
        raise ValueError(
            "sampler.variance=learned is of single steps of the chain: take all of them, sampler.steps="
            f"{process.num_steps}, or a fixed variance"
        )


def diffusion(
    config, image_shape: tuple[int, int, int], num_classes: int, guides: Mapping[str, Any], class_names: tuple[str, ...]
) -> Task:
    """A network that predicts the noise in images (or what it follows from) at every level of it.

    With cond.labels it is shown their labels, in training the null label in place of a share cond.dropout of them: so it is the
    model of every class and, with the null label, the unconditional one (Ho & Salimans 2022, algorithm 1).
    """
    process, prediction, objective, times, sampler, grid = kernel(config)
    learned_variance = bool(objective.learns)
    classes = num_classes if config.cond.labels else 0
    guided.check_guides(guides, config, process, image_shape, num_classes, class_names)
    labels_of_samples, label_names = guided.labels_of_samples(config, num_classes, guides, class_names)
    network = construct(NETWORKS, dict(config.network) | {"outputs": 1 + learned_variance, "num_classes": classes})
    noisy = _training_noise(config, process, times, image_shape)
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
    shared = _on_its_way(process, times, image_shape)
    shared |= {"labels": labels_of_samples, "label_names": label_names}
    return Task(init, loss, course, knobs, process=process, denoiser=denoiser, **shared)


def classifier(config, image_shape: tuple[int, int, int], num_classes: int, *_) -> Task:
    """A network that tells the labels of images at every level of noise, to guide the samples of a run on the same process.

    Its loss is the cross-entropy, in nats (Dhariwal & Nichol 2021, section 4). It is shown x as the prediction type shows it.
    """
    process, prediction, _, times, *_ = kernel(config)
    if config.network.name != "unet":
        raise UserError(f"The classifier is half of a U-Net: config.network.name must be unet, found {config.network.name}.")
    guided.check_labels(config, num_classes)
    network = Classifier(construct(NETWORKS, config.network), num_classes)
    noisy = _training_noise(config, process, times, image_shape)

    def init(key):
        return network.init(key, jnp.zeros((1, *image_shape)), jnp.zeros((1,)))

    def log_prob(params, x, t, labels, process=process, keys=None):
        check_times(process, t=t)
        time = jnp.broadcast_to(process.time_input(t), x.shape[:1])
        logits = network.apply(params, prediction.input(process, x, t), time, keys)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

    def loss(params, batch, examples, history, training=True):
        x0, eps, t, weights = noisy(batch, examples, history, training)
        keys = examples.of(DROPOUT) if training else None
        losses = -log_prob(params, add_noise(process, x0, eps, t), t, batch["label"], keys=keys)
        return weights * losses, process.log_snr(t), (t, losses) if times.update else ()

    def denoiser(*_):
        raise UserError(NO_SAMPLES)

    shared = _on_its_way(process, times, image_shape)
    return Task(init, loss, None, (), process=process, denoiser=denoiser, log_prob=log_prob, **shared)


def _training_noise(config, process, times, image_shape):
    """A function (batch, examples, history, training) -> (x0, eps, t, weights), of the examples of a step.

    In training they are mirrored where that is set.
    """
    flip = config.data.flip
    if flip and len(image_shape) != 3:
        raise UserError(f"config.data.flip mirrors images, but the data are of shape {list(image_shape)}: leave it false.")

    def draw(batch, examples, history, training):
        x0 = images.to_model(batch["image"])
        if flip and training:
            flipped = jax.vmap(jax.random.bernoulli)(examples.of(FLIP))
            x0 = jnp.where(flipped[:, None, None, None], x0[:, :, ::-1], x0)
        t, weights = times.draw(process, examples._replace(keys=examples.of(TIME)), history)
        return x0, jax.vmap(lambda key: jax.random.normal(key, image_shape))(examples.of(NOISE)), t, weights

    return draw


def _on_its_way(process, times, image_shape):
    """Fields of the `Task` that all tasks on noised images share."""

    def remember(history, seen):
        return times.update(history, *seen) if times.update else ()

    def noised(batch, keys, frames):
        x0 = images.to_model(batch["image"])
        eps = jax.vmap(lambda key: jax.random.normal(key, image_shape))(keys)
        times = jnp.linspace(process.t_min.training, process.t_max, frames - 1)
        return jnp.stack([x0, *(add_noise(process, x0, eps, t) for t in times)])

    ends = jnp.clip(process.log_snr(jnp.stack([process.t_max, process.t_min.training])), -LIMIT, LIMIT)
    levels = float(ends[0]), float(ends[1])
    return {"levels": levels, "noised": noised, "history": times.init(process), "remember": remember}


TASKS: dict[str, Callable[..., Task]] = {"diffusion": diffusion, "classifier": classifier}


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
