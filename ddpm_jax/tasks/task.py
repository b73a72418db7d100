"""What a task is: the loop, the checkpoints and the logs know it by the fields of `Task` alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.sample import Course, Sampled, whole

NO_SAMPLES = (
    "A classifier (config.task) has no denoiser and nothing to sample: let it guide another run, "
    "--config.guidance.classifier=<its directory>."
)


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
