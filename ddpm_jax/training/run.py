"""A trained run in Python: `run = ddpm_jax.load("runs/mnist"); images = run.sample(16)`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax.construct import construct
from ddpm_jax.diffusion.predictions import Denoiser, Prediction
from ddpm_jax.diffusion.process import Process
from ddpm_jax.errors import UserError
from ddpm_jax.training import checkpoints, parallel, run_directory, sampling
from ddpm_jax.training.optimizers import OPTIMIZERS
from ddpm_jax.training.step import State, init_state
from ddpm_jax.training.tasks import Task, build

# Sampler settings that are arguments of the compiled sampler.
TRACED = ("ema", "labels", "eta", "rho", "t_min", "seed", "s_churn", "s_min", "s_max", "s_noise", "snr", "rate", "rtol", "atol")


@dataclasses.dataclass(frozen=True)
class Run:
    """The newest checkpoint of a run, with what it takes to use it. `state.ema`: an average per `config.ema.decays`."""

    workdir: Path
    config: ConfigDict
    image_shape: tuple[int, ...]
    num_classes: int
    task: Task
    state: State
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)  # samplers, by the config they are made from

    @property
    def params(self) -> Any:
        """The averaged parameters that sampling uses: those of `config.sampler.ema`."""
        return self.state.ema[self.config.sampler.ema]

    @property
    def process(self) -> Process:
        return self.task.process

    def denoise(self, x: jax.Array, t: jax.Array) -> Prediction:
        """The denoiser of the kernel, unclipped; of a conditional run the unconditional model.

        x: [B, ...] in the model's scale; t: [] or [B].
        """
        return self.task.denoiser(self.params)(x, t)

    def denoiser(self, labels: Any) -> Denoiser:
        """That of these labels, [B] as the images or one for all of them. Raises UserError for those that the run has not."""
        if not self.config.cond.labels:
            raise UserError(f"The run in {self.workdir} is not conditional: take `denoise`, or a run of the variant cond.")
        known, end = np.asarray(labels), self.num_classes
        if known.dtype.kind not in "iu" or known.ndim > 1 or not np.all((known >= 0) & (known < end)):
            raise UserError(f"labels must be whole numbers from 0 to {end - 1}, one or a vector, found {labels!r}.")
        return lambda x, t: self.task.denoiser(self.params, jnp.broadcast_to(known, len(x)))(x, t)

    def sample(self, count: int, **sampler: Any) -> np.ndarray:
        """The run's first `count` samples: images [count, H, W, C] in [-1, 1], or points [count, 2].

        Keyword arguments override the run's config.sampler: run.sample(16, name="ddim", steps=20, eta=0.5, seed=1);
        ema=1 takes the second of config.ema.decays. The same overrides give the same samples. Raises UserError for an override
        that is not accepted.
        """
        return self.draw(count, **sampler).x

    def trajectory(self, count: int, frames: int = 24, **sampler: Any) -> np.ndarray:
        """[frames, count, ...]: the states from noise to the samples that `sample` would return."""
        film = self.draw(count, frames=frames, **({"batch_size": count} | sampler)).frames
        if film is None:
            raise UserError(
                f"A trajectory needs two frames and two sampler steps or more, found frames={frames} and {sampler}."
            )
        return film

    def draw(self, count: int, **sampler: Any):
        """As `sample`, but all of it: a `Sampled` with the network evaluations and sampler.frames frames.

        Calls that differ in what is TRACED alone run one compiled program.
        """
        flat = configs.flatten(self.config)
        for key, value in {"frames": 0, **sampler, "num_samples": count}.items():
            if f"sampler.{key}" not in configs.KEYS:
                raise configs.unknown_key(f"sampler.{key}")
            value = value.item() if isinstance(value, np.generic) else value
            if isinstance(configs.KEYS[f"sampler.{key}"].default, tuple):  # of an array, a list or one number
                value = tuple(np.ravel(value).tolist())
            wants_float = isinstance(configs.KEYS[f"sampler.{key}"].default, float)
            flat[f"sampler.{key}"] = float(value) if wants_float and type(value) is int else value
            configs.check_value(f"sampler.{key}", flat[f"sampler.{key}"])
        config = configs.unflatten(flat)
        configs.validate(config)
        devices = jax.local_devices()
        task = build(config, self.image_shape, self.num_classes)
        same_program = json.dumps({key: value for key, value in config.sampler.items() if key not in TRACED})
        if same_program not in self.compiled:
            self.compiled[same_program] = sampling.make_draw(task, config.sampler, devices, tell=False)
        params = parallel.replicate(self.state.ema[config.sampler.ema], devices)
        return self.compiled[same_program](params, knobs=task.knobs, seed=config.sampler.seed)


def load(workdir: str | Path) -> Run:
    """The run in a directory, at its newest checkpoint. Raises UserError where there is none."""
    config = run_directory.read(Path(workdir))[0]
    return restore(Path(workdir), config)


def restore(workdir: Path, config: ConfigDict) -> Run:
    """As `load`, with another sampler section than the run's, say."""
    _, image_shape, num_classes = run_directory.read(workdir)
    task = build(config, image_shape, num_classes)
    optimizer = construct(OPTIMIZERS, config.optim)
    manager = checkpoints.open_manager(workdir / "checkpoints", read_only=True)

    def start():
        return init_state(task, optimizer, config.seed, len(config.ema.decays))

    restored = checkpoints.restore_latest(manager, jax.eval_shape(start))
    if restored is None:
        first = min(config.train.checkpoint_every, config.train.steps)
        raise UserError(f"{workdir} has no checkpoint yet: the first comes at step {first}. Train it with --workdir={workdir}.")
    return Run(workdir, config, image_shape, num_classes, task, restored[1])
