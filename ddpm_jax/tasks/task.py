"""What a task is: the loop, the checkpoints and the logs know it by the fields of `Task` alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.sample import Course, Sampled, whole
from ddpm_jax.tasks.conditions import UNCONDITIONAL, Conditioning
from ddpm_jax.tasks.spaces import Space

NO_SAMPLES = (
    "A classifier (config.task) has no denoiser and nothing to sample: let it guide another run, "
    "--config.guidance.classifier=<its directory>."
)


class Task(NamedTuple):
    """A task built from a config.

    init(key) -> params. frozen() -> the parameters that a new run has besides and does not train: no gradient, no average; an
    argument of all that follows, never a constant of a program. () for none.
    loss(params, frozen, batch, examples, history, training=True) -> (losses [B], levels [B], seen): what example b gives may
    depend on row b of the batch, its key and place in `examples`, and the history alone; its level says where it stands in the
    interval `levels`, over which the log tells losses apart. Where it is not training, nothing is dropped, no image mirrored.
    Two players are one loss, the sum of theirs, each with the other's parameters under `stop_gradient`.
    history: what the task remembers of the steps before, at first; arrays, or () for nothing. remember(history, seen) ->
    history, with `seen`, arrays [N, ...], of the whole global batch in its order.
    course(params, frozen, knobs, seed, indices [B], frames, up) -> the Course to images [B, H, W, C] in [-1, 1]: image i
    depends on seed, indices[i], its condition and the knobs alone; up: from knobs.start up the grid, to its noise. None where
    there is nothing to sample. sample, with the same arguments: all of it, Sampled.
    noised(frozen, batch, keys [B], frames) -> [frames, B, ...]: the examples on their way into noise, as images.
    process, and denoiser(params, frozen, condition, process) -> Denoiser, unclipped, are what plugs into the kernel. condition:
    a pytree of rows [B, ...]; None: that of the unconditional model. It acts on states of the `space`.
    condition: how the task is conditioned, and what samples are conditioned on.
    log_prob(params, frozen, x, t, labels [B], process) -> [B], of a classifier: log p(label | x at t).
    """

    init: Callable
    loss: Callable
    course: Callable[..., Course] | None
    knobs: Any
    levels: tuple[float, float]
    noised: Callable
    process: Process
    denoiser: Callable
    space: Space
    history: Any = ()
    remember: Callable = lambda history, seen: ()  # noqa: ARG005
    frozen: Callable[[], Any] = lambda: ()
    condition: Conditioning = UNCONDITIONAL
    log_prob: Callable | None = None

    def sample(self, *args, **kwargs) -> Sampled:
        return whole(self.course(*args, **kwargs))
