"""A trained run in Python: `run = ddpm_jax.load("runs/mnist"); images = run.sample(16)`."""

import dataclasses
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax.data import identity
from ddpm_jax.diffusion.edit import noised
from ddpm_jax.diffusion.keys import Purpose, key_of
from ddpm_jax.diffusion.predictions import Denoiser, Prediction
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.sample import Sampled, check, check_encoder, sample_keys
from ddpm_jax.errors import UserError, tell_machine
from ddpm_jax.images import checked
from ddpm_jax.progress import shown
from ddpm_jax.runs import checkpoints, resumable, run_directory, sampling, snapshots, weights
from ddpm_jax.tasks import build, conditions, inpainting
from ddpm_jax.tasks.task import Task
from ddpm_jax.terminal import say
from ddpm_jax.training import parallel
from ddpm_jax.training.step import State

# Sampler settings that are arguments of the compiled sampler.
TRACED = (
    "ema", "ema_width",
    "labels", "eta", "noise_scale", "variance_scale", "tau", "lower_order_final", "rho", "beta_a", "beta_b", "t_min",
    "seed", "s_churn", "s_min", "s_max", "s_noise", "snr", "rate", "rtol", "atol",
)  # fmt: skip

# Keys of the sampler that are of the command alone, and what stands for them here.
NOT_IN_PYTHON = {
    "num_samples": "The number of samples is the first argument, or that of the images: leave num_samples out.",
    "save": "save is of the files that --mode=sample writes, and these samples are arrays: leave it out.",
    "checkpoint": "A run in Python is one checkpoint: get another by ddpm_jax.load(workdir, step=...).",
}

ENCODING = 2**31 - 1  # in place of a transition, in the address of what encodes the image that a sample begins with

# Settings of config.eval that the likelihood along the probability-flow ODE depends on.
OF_THE_ODE = ("solver", "steps", "grid", "rtol", "atol", "probe", "probes", "seed", "batch_size")

# What an export says of its weights: the sections of the config that make a denoiser of them.
OF_THE_DENOISER = ("network.", "process.", "prediction.", "loss.", "cond.")

# What `encode` and `decode` do but for what they are told.
INVERTIBLE = {"name": "ddim", "eta": 0.0, "s_churn": 0.0, "last": "stop", "clip": "none"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run, with what it takes to use it. `state.ema`: an average per `ema.decays`, then per `ema.widths`."""

    workdir: Path
    config: ConfigDict
    image_shape: tuple[int, ...]
    num_classes: int
    task: Task
    state: State
    compiled: dict[str, Any] = dataclasses.field(default_factory=dict)  # samplers, by the config they are made from
    guides: dict[str, Any] = dataclasses.field(default_factory=dict)  # other runs, by their directories
    class_names: tuple[str, ...] = ()  # by their labels; () where they are not known
    made: dict[float, Any] = dataclasses.field(default_factory=dict)  # by its width, the average that was last made of others

    def __repr__(self) -> str:
        """One line: where it lies, what it is of, and how far it was trained."""
        c, shape = self.config, " x ".join(map(str, self.image_shape))
        return (
            f"Run({str(self.workdir)!r}: {c.task} of {c.data.name} [{shape}], {c.network.name}, process {c.process.name}, "
            f"prediction {c.prediction.name}, step {int(self.state.step)})"
        )

    @property
    def params(self) -> Any:
        """The averaged parameters that sampling uses: those of `config.sampler.ema`, or of `config.sampler.ema_width`."""
        return self._average_of(self.config)

    def average(self, width: float) -> "Run":
        """This run with the power-function average of this relative width as its `params`, as if it had been kept.

        It is made of those that were (`ema.widths`, `ema.snapshot_every`) by least squares (Karras et al. 2024). Raises
        UserError for a run that kept none.
        """
        configs.check_value("ema.widths", (width,))
        config = self.config.copy_and_resolve_references()
        config.sampler.ema_width = width
        configs.validate(config)
        averaged = dataclasses.replace(self, config=config, made={})
        averaged._average_of(config)  # made now, not at the first use
        return averaged

    @property
    def process(self) -> Process:
        return self.task.process

    def denoise(self, x: jax.Array, t: jax.Array) -> Prediction:
        """The denoiser of the kernel, unclipped; of a conditional run the unconditional model.

        x: [B, ...] in the model's scale; t: [] or [B], in [0, t_max]: step n of a table of T is at t = n / T. Raises ValueError
        for other times that are known, and UserError for a run that learned no unconditional model.
        """
        if self.config.cond.labels and not self.config.cond.dropout:
            raise UserError(
                f"The run in {self.workdir} learned no null {self.task.condition.name}, cond.dropout being 0: take "
                f"denoiser({self.task.condition.name}s)."
            )
        return self.task.denoiser(self.params, self.state.frozen)(x, t)

    def denoiser(self, condition: Any = None, *, labels: Any = None) -> Denoiser:
        """That of a condition: rows [B, ...] as the images or one for all of them, as the run's task reads them; or labels, the
        same. Raises UserError for those that the run has not."""
        task, known = self.task, self._known(condition, labels)
        rows = lambda x: conditions.each(task.condition, known, len(x))  # noqa: E731
        return lambda x, t: task.denoiser(self.params, self.state.frozen, rows(x))(x, t)

    def _known(self, condition, labels=None):
        """A condition in the user's words, or labels, as arrays, one row or some. UserError for those that the run has not."""
        if not self.task.condition.shown:
            raise UserError(
                f"The run in {self.workdir} is not conditional: give no labels (`denoise`), or take a run of the variant cond."
            )
        return self.task.condition.read(labels if condition is None else condition)

    def sample(self, count: int, **sampler: Any) -> np.ndarray:
        """The run's first `count` samples: images [count, H, W, C] in [-1, 1], or points [count, 2].

        Keyword arguments override the run's config.sampler: run.sample(16, name="ddim", steps=20, eta=0.5, seed=1);
        ema=1 takes the second of config.ema.decays. Of a conditional run, labels=3 or labels=[0, 1, 2] gives sample i the label
        labels[i mod their number]; labels="cat" or ["cat", "dog"] are of `class_names`; condition=rows, a pytree of arrays
        [N, ...], gives sample i row i mod N of what conditions the run. guidance=2.0 overrides guidance.scale,
        guidance={"scale": 2.0, "rescale": 0.7} more of config.guidance. The same overrides give the same samples.
        progress=True shows how far it is, as for all that draws. Raises UserError for an override that is not accepted or does
        not apply.
        """
        return self.draw(count, **sampler).x

    def inpaint(self, images: np.ndarray, mask: np.ndarray, count: int = 0, **settings: Any) -> np.ndarray:
        """Images [N, H, W, C] (uint8, or in [-1, 1]) with their unknown pixels drawn anew: [count, H, W, C] in [-1, 1].

        mask [H, W] (or [H, W, 1 or C]): 1 or True where pixels are known, 0 where not; or uint8 grey levels, known from 128
        on. count: by default N; sample i is of image i mod N. Keyword arguments override config.inpaint and config.sampler:
        run.inpaint(images, mask, method="repaint", resamplings=5, steps=100). Raises UserError for images or a mask of another
        size or other values, a mask without known or unknown pixels, and a method that does not go with the sampler.
        """
        given = inpainting.given(images, mask, self.image_shape)
        return self._draw(count or len(given.images), settings, given=given).x

    def encode(self, images: np.ndarray, **sampler: Any) -> np.ndarray:
        """The noises [N, ...] that images [N, ...] (uint8, or in [-1, 1]) come from: DDIM inversion.

        Keyword arguments as for `sample`; name="heun" or another sampler without noise of its own runs up the probability-flow
        ODE instead. Nothing is clipped, for that could not be undone. `decode` with the same arguments leads back, up to the
        error of the steps (measured in experiments/guidance); a mixture of two noises (`diffusion.edit.slerp`) leads to an
        image between. A conditional run wants the labels, of image i labels[i mod their number]. Raises UserError as `sample`,
        for images of another shape, and for a sampler that draws noise.
        """
        given = checked(images, self.image_shape, "The images to encode")
        return self._draw(len(given), sampler, start=given, invertible=True, up=True).x

    def decode(self, latents: np.ndarray, **sampler: Any) -> np.ndarray:
        """The images that noises [N, ...] lead to. See `encode`."""
        given = checked(latents, self.task.space.shape, "The noises", bounded=False)
        return self._draw(len(given), sampler, start=given, invertible=True).x

    def img2img(self, images: np.ndarray, until: float, **sampler: Any) -> np.ndarray:
        """Images near the given ones [N, ...]: noised to the time `until`, in (0, t_max], and sampled from there (SDEdit).

        Of the grid of config.sampler the times up to `until` are used, and the first of them is that to which is noised.
        Keyword arguments and errors as for `encode`, but for the sampler, which is the run's own.
        """
        given = checked(images, self.image_shape, "The images")
        if until is None:
            raise UserError("until must be a time, found None: give 0.5, say.")
        return self._draw(len(given), sampler, start=given, until=until).x

    def trajectory(self, count: int, frames: int = 24, **sampler: Any) -> np.ndarray:
        """[frames, count, ...]: the states from noise to the samples that `sample` would return."""
        film = self.draw(count, frames=frames, **({"batch_size": count} | sampler)).frames
        if film is None:
            raise UserError(
                f"A trajectory needs two frames and two sampler steps or more, found frames={frames} and {sampler}."
            )
        return film

    def draw(self, count: int, **sampler: Any) -> Sampled:
        """As `sample`, but all of it: with the network evaluations and sampler.frames frames.

        Calls that differ in what is TRACED alone run one compiled program.
        """
        return self._draw(count, sampler)

    def log_likelihood(
        self, images: np.ndarray, condition: Any = None, *, labels: Any = None, progress: bool = False, **settings: Any
    ):
        """`LogLikelihood` of images [N, H, W, C], uint8, or points [N, 2]: nats [N], bits_per_dimension [N], evaluations [N]
        and conditions.

        Exact along the probability-flow ODE, but for the solver's error and the noise of the probes of its divergence
        (probe="exact": none, for data of few dimensions); pixels are dequantised, which bounds from below. Keyword arguments
        override config.eval, as in --mode=eval: run.log_likelihood(images, solver="rk4", steps=50, probes=4, seed=1); and ema
        or ema_width.
        A conditional run wants the labels, one or [N], or another condition. What an image gets depends on its place. Raises
        UserError for other images, conditions or settings, and where a result is not finite.
        """
        from ddpm_jax.evaluation import bits_per_dimension  # a layer above: what evaluates is told of runs, and not they of it

        if others := settings.keys() - {*OF_THE_ODE, "ema", "ema_width"}:
            taken = ", ".join((*OF_THE_ODE, "ema"))
            raise UserError(f"log_likelihood takes {taken} and ema_width, found {', '.join(sorted(others))}.")
        rows = np.asarray(images)
        if len(self.image_shape) == 3 and rows.dtype != np.uint8:
            raise UserError(
                f"The likelihood is that of pixels, uint8, found {rows.dtype}: give ddpm_jax.images.to_uint8(...) of images in "
                "[-1, 1]."
            )
        checked(rows, self.image_shape, "The images")
        given, name = labels if condition is None else condition, self.task.condition.name
        if given is None and self.task.condition.shown:
            raise UserError(f"The likelihood of a conditional run is that given the {name}s: give the images', {name}s=[...].")
        known = None if given is None else jax.device_get(conditions.each(self.task.condition, self._known(given), len(rows)))
        config = self._overridden(len(rows), settings, "eval", {})
        run = dataclasses.replace(self, config=config)
        with shown(progress, len(rows), "examples") as report:
            return bits_per_dimension.log_likelihood(run, rows, known, report)

    def export(self, path: str | Path) -> Path:
        """Writes `params`, the averaged ones, to a .safetensors file, with the words that say what network they are of.

        Raises UserError for another ending.
        """
        flat = configs.flatten(self.config)
        about = {
            "made by": "ddpm_jax",
            "config": json.dumps({key: value for key, value in flat.items() if key.startswith(OF_THE_DENOISER)}),
            "image_shape": json.dumps(self.image_shape),
            "num_classes": str(self.num_classes),
            "step": str(int(self.state.step)),
            **{name: str(number) for name, number in configs.average_of(self.config).items()},
        }
        return weights.write(path, self.params, about)

    def with_weights(self, path: str | Path) -> "Run":
        """This run with the parameters of a file that `export` wrote as its `params`, in place of its average of `sampler.ema`.

        Raises UserError where the file cannot be read, or its parameters are of another network.
        """
        config, ema = self.config.copy_and_resolve_references(), list(self.state.ema)
        config.sampler.ema_width = 0.0
        ema[config.sampler.ema] = weights.read(path, ema[config.sampler.ema])
        return dataclasses.replace(self, config=config, state=self.state._replace(ema=tuple(ema)))

    def _draw(self, count, told, *, given=(), start=None, until=None, invertible=False, up=False):
        """told: the user's overrides. given: what to inpaint. start [count, ...]: the states to begin in; until: images, and
        the time to noise them to; invertible: what is done can be undone; up: upwards, from images to noises."""
        told, progress, condition = dict(told), told.get("progress", False), told.get("condition")
        for name in ("progress", "condition"):
            told.pop(name, None)
        config = self._overridden(count, told, "inpaint" if given else "sampler", INVERTIBLE if invertible else {})
        devices = jax.local_devices()
        task = build(config, self.image_shape, self.num_classes, load_guides(config, self.guides), self.class_names)
        if (given or start is not None) and condition is None:
            inpainting.check_condition(task)
        acts = {key: value if isinstance(value, str) else bool(value) for key, value in config.guidance.items()}
        acts |= {"scale": config.guidance.scale == 1, "interval_low": True, "interval_high": True}
        settings = {key: configs.acting(f"sampler.{key}", config) for key in config.sampler if key not in TRACED}
        same_program = json.dumps([settings, acts, config.inpaint.to_dict() if given else {}, up])
        task = task._replace(course=partial(task.course, up=up)) if task.course else task
        draw = self.compiled.get(same_program) or sampling.make_draw(task, config.sampler, devices)
        knobs = task.knobs._replace(given=given)
        if condition is not None:
            null = task.condition.null
            knobs = knobs._replace(condition=conditions.at_least_one(null, self._known(condition)))
        if start is not None:
            keys = sample_keys(config.sampler.seed, np.arange(count), config.addresses)
            if up or until is not None:
                start = self._encoded(start, keys)
            knobs = _from(start, until, invertible, up, config.sampler, knobs, keys)
        if given and same_program not in self.compiled:
            inpainting.check(config, task, self.state.ema[0], self.state.frozen, knobs)
        self.compiled[same_program] = draw
        params = parallel.replicate((self._average_of(config), self.state.frozen), devices)
        with shown(progress, sampling.work(config.sampler, devices, knobs), "sampling steps") as report:
            return draw(*params, report, knobs, config.sampler.seed)

    def _average_of(self, config):
        """The average that a config's sampler.ema_width or sampler.ema names."""
        width = config.sampler.ema_width
        if width and width not in self.made:
            average = snapshots.average(self.workdir, config, self.state, width)
            self.made.clear()
            self.made[width] = average
        return self.made[width] if width else self.state.ema[config.sampler.ema]

    def _encoded(self, images, keys):
        """Images as states of the space that the model is of. keys [B]: of the samples that begin there."""
        if self.task.space.is_data:
            return images
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys, ENCODING)
        return np.asarray(jax.jit(self.task.space.encode)(self.state.frozen, images, keys))

    def _overridden(self, count, told, first, defaults):
        """The run's config with what the user told, before the defaults: keys of the section `first`, else of the sampler's."""
        told = dict(told)
        guidance = told.pop("guidance", {})
        guidance = guidance if isinstance(guidance, Mapping) else {"scale": guidance}
        overrides = {f"guidance.{key}": value for key, value in guidance.items()}
        for key, value in told.items():
            overrides[f"{first}.{key}" if f"{first}.{key}" in configs.KEYS else f"sampler.{key}"] = value
        others = {f"sampler.{key}": value for key, value in {"frames": 0, **defaults}.items()}
        flat = configs.flatten(self.config)
        for key in NOT_IN_PYTHON.keys() & told.keys():
            raise UserError(NOT_IN_PYTHON[key])
        for key, value in {**others, **overrides, "sampler.num_samples": count}.items():
            if key not in configs.KEYS:
                raise configs.unknown_key(key)
            value = value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) and np.size(value) == 1 else value
            value = tuple(np.ravel(value).tolist()) if configs.KEYS[key].type is tuple else value
            flat[key] = configs.cast(key, value)
            configs.check_value(key, flat[key])
        config = configs.unflatten(flat)
        configs.validate(config)
        for key in overrides:
            configs.check_applies(key, config)
        return config


def _from(start, until, invertible, up, sampler, knobs, keys):
    """The knobs of samples that begin in these states, see `Run._draw`. Raises UserError where they cannot."""
    if until is not None:
        number = np.ndim(until) == 0 and np.asarray(until).dtype.kind in "iuf"
        if not (number and knobs.grid[-1] <= until <= knobs.process.t_max):
            raise UserError(
                f"until must be a time from the earliest of the grid, {float(knobs.grid[-1]):.4g}, to t_max, "
                f"{float(knobs.process.t_max):.4g}, found {until!r}."
            )
        grid = knobs.grid[knobs.grid <= until]
        knobs, start = knobs._replace(grid=grid), noised(knobs.process, grid[0], keys, start)
    try:
        if invertible:
            check_encoder(knobs.sampler, knobs.process, knobs.grid[::-1])
        if not up:
            check(knobs.sampler, knobs.process, knobs.grid, sampler.last, sampler.frames)
    except ValueError as error:
        tell_machine(error)
        raise UserError(f"This cannot be {'encoded' if up else 'decoded' if invertible else 'sampled'} so: {error}.") from error
    return knobs._replace(start=start)


def load(workdir: str | Path, step: int = 0) -> Run:
    """The run in a directory, at its checkpoint of this step; 0: the newest. Raises UserError where there is none."""
    config = run_directory.read(Path(workdir))[0]
    configs.check_value("sampler.checkpoint", step)
    config.sampler.checkpoint = step
    return restore(Path(workdir), config)


def load_guides(config: ConfigDict, known: dict[str, Run] | None = None) -> dict[str, Run]:
    """The runs that config.GUIDES name, by their keys. known: those loaded before by their directories, and now."""
    known, flat = {} if known is None else known, configs.flatten(config)
    for path in filter(None, (flat[key] for key in configs.GUIDES)):
        known[path] = known.get(path) or load(path)
    return {key: known[flat[key]] for key in configs.GUIDES if flat[key]}


def initial(config: ConfigDict, task: Task) -> tuple[Any, dict[str, Any]]:
    """The parameters of config.train.init, the average that its own sampling uses, and whose they are.

    Says in which keys that tell what parameters mean the two runs differ. Raises UserError where its network has others.
    """
    other, path = load(config.train.init), jax.tree_util.keystr
    own = jax.eval_shape(task.init, key_of(0, Purpose.INIT))
    wanted, found = (
        {path(place, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}" for place, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (own, other.params))
    )
    if wanted != found:
        odd = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))[0]
        raise UserError(
            f"The run in {other.workdir}, config.train.init, has another network than this one: the parameter {odd} is "
            f"{found.get(odd, 'none')} there, {wanted.get(odd, 'none')} here. Give a run whose network is the same."
        )
    meaning = ("network.", "process.", "prediction.", "loss.name", "loss.variance", "cond.", "data.name")
    differing = [
        f"{key}: {before!r} -> {after!r}"
        for key, (before, after) in configs.changes(other.config, config).items()
        if key.startswith(meaning)
    ]
    average = configs.average_of(other.config)
    say(
        f"starting from step {int(other.state.step)} of {other.workdir}, EMA {', '.join(map(str, average.values()))}"
        + (f"; other there than here: {'; '.join(differing)}" if differing else "")
    )
    origin = {"run": str(other.workdir.absolute()), "step": int(other.state.step), **average}
    return other.params, origin | {"sha256": checkpoints.digest(other.params)}


def restore(workdir: Path, config: ConfigDict) -> Run:
    """As `load`, with another sampler section than the run's, say, and the runs that guide it.

    config.sampler.checkpoint: the step, or 0.
    """
    _, image_shape, num_classes, data = run_directory.read(workdir)
    class_names = identity.class_names(data)
    task = build(config, image_shape, num_classes, load_guides(config), class_names)
    manager = checkpoints.open_manager(workdir / "checkpoints", read_only=True)
    agree = partial(run_directory.check_checkpoint, workdir, config, image_shape, num_classes, data)
    target, step = resumable.state_shapes(config, task), config.sampler.checkpoint
    restored = (
        checkpoints.restore_step(manager, target, step, agree=agree)
        if step
        else checkpoints.restore_latest(manager, target, agree=agree)
    )
    if restored is None:
        first = min(config.train.checkpoint_every, config.train.steps)
        raise UserError(f"{workdir} has no checkpoint yet: the first comes at step {first}. Train it with --workdir={workdir}.")
    return Run(workdir, config, image_shape, num_classes, task, restored[1], class_names=class_names)
