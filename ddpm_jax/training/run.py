"""A trained run in Python: `run = ddpm_jax.load("runs/mnist"); images = run.sample(16)`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax.construct import construct
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.process import Process
from ddpm_jax.errors import UserError
from ddpm_jax.training import checkpoints, inpainting, parallel, run_directory, sampling
from ddpm_jax.training.optimizers import OPTIMIZERS
from ddpm_jax.training.step import State, init_state
from ddpm_jax.training.tasks import Task, build

# Sampler settings that are arguments of the compiled sampler.
TRACED = ("ema", "eta", "rho", "t_min", "seed", "s_churn", "s_min", "s_max", "s_noise", "snr", "rate", "rtol", "atol")


@dataclasses.dataclass(frozen=True)
class Run:
    """The newest checkpoint of a run, with what it takes to use it. `state.ema`: an average per `config.ema.decays`."""

    workdir: Path
    config: ConfigDict
    image_shape: tuple[int, ...]
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
        """The denoiser of the kernel, unclipped. x: [B, ...] in the model's scale; t: [] or [B]."""
        return self.task.denoise(self.params, x, t)

    def sample(self, count: int, **sampler: Any) -> np.ndarray:
        """The run's first `count` samples: images [count, H, W, C] in [-1, 1], or points [count, 2].

        Keyword arguments override the run's config.sampler: run.sample(16, name="ddim", steps=20, eta=0.5, seed=1);
        ema=1 takes the second of config.ema.decays. The same overrides give the same samples. Raises UserError for an override
        that is not accepted.
        """
        return self.draw(count, **sampler).x

    def inpaint(self, images: np.ndarray, mask: np.ndarray, count: int = 0, **settings: Any) -> np.ndarray:
        """Images [N, H, W, C] (uint8, or in [-1, 1]) with their unknown pixels drawn anew: [count, H, W, C] in [-1, 1].

        mask [H, W]: True where pixels are known. count: by default N; sample i is of image i mod N. Keyword arguments override
        config.inpaint and config.sampler: run.inpaint(images, mask, method="repaint", resamplings=5, steps=100). Raises
        UserError for images or a mask of another size than the run's, and for a method that does not go with the sampler.
        """
        given = inpainting.given(images, mask, self.image_shape)
        return self.draw(count or len(given.images), given, **settings).x

    def trajectory(self, count: int, frames: int = 24, **sampler: Any) -> np.ndarray:
        """[frames, count, ...]: the states from noise to the samples that `sample` would return."""
        film = self.draw(count, frames=frames, **({"batch_size": count} | sampler)).frames
        if film is None:
            raise UserError(
                f"A trajectory needs two frames and two sampler steps or more, found frames={frames} and {sampler}."
            )
        return film

    def draw(self, count: int, given: inpainting.Given | tuple = (), **sampler: Any):
        """As `sample`, but all of it: a `Sampled` with the network evaluations and sampler.frames frames.

        Calls that differ in what is TRACED alone run one compiled program.
        """
        flat = configs.flatten(self.config)
        for key, value in {"frames": 0, **sampler, "num_samples": count}.items():
            key = f"inpaint.{key}" if given and f"inpaint.{key}" in configs.KEYS else f"sampler.{key}"
            if key not in configs.KEYS:
                raise configs.unknown_key(key)
            value = value.item() if isinstance(value, np.generic) else value
            flat[key] = float(value) if isinstance(configs.KEYS[key].default, float) and type(value) is int else value
            configs.check_value(key, flat[key])
        config = configs.unflatten(flat)
        configs.validate(config)
        devices = jax.local_devices()
        task = build(config, self.image_shape)
        knobs = task.knobs._replace(given=given)
        settings = {key: value for key, value in config.sampler.items() if key not in TRACED}
        same_program = json.dumps([settings, config.inpaint.to_dict() if given else {}])
        if same_program not in self.compiled:
            if given:
                inpainting.check(config, task, self.state.ema[0], knobs)
            self.compiled[same_program] = sampling.make_draw(task, config.sampler, devices, tell=False)
        params = parallel.replicate(self.state.ema[config.sampler.ema], devices)
        return self.compiled[same_program](params, knobs=knobs, seed=config.sampler.seed)


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

    def start():
        return init_state(task, optimizer, config.seed, len(config.ema.decays))

    restored = checkpoints.restore_latest(manager, jax.eval_shape(start))
    if restored is None:
        first = min(config.train.checkpoint_every, config.train.steps)
        raise UserError(f"{workdir} has no checkpoint yet: the first comes at step {first}. Train it with --workdir={workdir}.")
    return Run(workdir, config, image_shape, task, restored[1])
