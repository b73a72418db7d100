"""A trained run in Python: `run = ddpm_jax.load("runs/mnist"); images = run.sample(16)`."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax.construct import construct
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.processes import Process
from ddpm_jax.errors import UserError
from ddpm_jax.training import checkpoints, parallel, run_directory, sampling
from ddpm_jax.training.optimizers import OPTIMIZERS
from ddpm_jax.training.step import State, init_state
from ddpm_jax.training.tasks import Task, build


@dataclasses.dataclass(frozen=True)
class Run:
    """The newest checkpoint of a run, with what it takes to use it. `state.ema` are the averaged parameters."""

    workdir: Path
    config: ConfigDict
    image_shape: tuple[int, ...]
    task: Task
    state: State

    @property
    def params(self) -> Any:
        """The averaged parameters, which sampling uses."""
        return self.state.ema

    @property
    def process(self) -> Process:
        return self.task.process

    def denoise(self, x: jax.Array, t: jax.Array) -> Prediction:
        """The denoiser of the kernel, unclipped. x: [B, ...] in the model's scale; t: [] or [B]."""
        return self.task.denoise(self.params, x, t)

    def sample(self, count: int, **sampler: Any) -> np.ndarray:
        """The run's first `count` samples: images [count, H, W, C] in [-1, 1], or points [count, 2].

        Keyword arguments override the run's config.sampler: run.sample(16, name="ddim", steps=20, eta=0.5, seed=1). The same
        overrides give the same samples. Raises UserError for an override that is not accepted.
        """
        return self.draw(count, **sampler).x

    def trajectory(self, count: int, frames: int = 24, **sampler: Any) -> np.ndarray:
        """[frames, count, ...]: the states from noise to the samples that `sample` would return."""
        return self.draw(count, frames=frames, **({"batch_size": count} | sampler)).frames

    def draw(self, count: int, **sampler: Any):
        """As `sample`, but all of it: a `Sampled` with the network evaluations and sampler.frames frames."""
        config = self.config.copy_and_resolve_references()
        for key, value in {"frames": 0, **sampler, "num_samples": count}.items():
            if key not in config.sampler:
                raise configs.unknown_key(f"sampler.{key}")
            config.sampler.update({key: value})
        configs.validate(config)
        devices = jax.local_devices()
        task = build(config, self.image_shape)
        return sampling.make_draw(task, config.sampler, devices)(parallel.replicate(self.params, devices))


def load(workdir: str | Path) -> Run:
    """The run in a directory, at its newest checkpoint. Raises UserError where there is none."""
    config, _ = run_directory.read(Path(workdir))
    return restore(Path(workdir), config)


def restore(workdir: Path, config: ConfigDict) -> Run:
    """As `load`, with another sampler section than the run's, say."""
    _, image_shape = run_directory.read(workdir)
    task = build(config, image_shape)
    optimizer = construct(OPTIMIZERS, config.optim)
    manager = checkpoints.open_manager(workdir / "checkpoints", read_only=True)
    restored = checkpoints.restore_latest(manager, jax.eval_shape(lambda: init_state(task, optimizer, config.seed)))
    if restored is None:
        first = min(config.train.checkpoint_every, config.train.steps)
        raise UserError(f"{workdir} has no checkpoint yet: the first comes at step {first}. Train it with --workdir={workdir}.")
    return Run(workdir, config, image_shape, task, restored[1])
