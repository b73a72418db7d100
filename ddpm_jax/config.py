"""The config: every key with its default, its meaning and what it accepts; the validator."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import yaml
from ml_collections import ConfigDict, FieldReference

from ddpm_jax.construct import AUTO, own_default, takes
from ddpm_jax.data import SOURCES, toy2d
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.inverse import INPAINTING
from ddpm_jax.diffusion.keys import ADDRESSES, BY_PURPOSE
from ddpm_jax.diffusion.likelihood import FROM_END_TO_END, PROBES, SOLVERS
from ddpm_jax.diffusion.losses import LOSSES, WEIGHTINGS
from ddpm_jax.diffusion.posterior import VARIANCES
from ddpm_jax.diffusion.predictions import PREDICTIONS
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import LASTS
from ddpm_jax.diffusion.samplers import NORMS, PREDICTORS, SAMPLERS, SLOPES, UNIPC_B
from ddpm_jax.diffusion.samplers.names import GRIDS_ELSEWHERE, SAMPLERS_ELSEWHERE, here
from ddpm_jax.diffusion.times import TIMES
from ddpm_jax.diffusion.transforms import CLIPS
from ddpm_jax.errors import UserError, tell_machine
from ddpm_jax.models import NETWORKS
from ddpm_jax.models.resampling import RESAMPLING
from ddpm_jax.spelling import nearest
from ddpm_jax.training.guided import FORMS
from ddpm_jax.training.optimizers import OPTIMIZERS
from ddpm_jax.training.parts import WAYS
from ddpm_jax.training.tasks import TASKS, kernel


class Key(NamedTuple):
    """A key's default (int, float, bool, str or tuple; its type is the key's type), meaning, and accepted values.

    accepts: names to choose from, or (predicate, its words); for a tuple it speaks of each element. None: any of the type.
    A key whose constructors have defaults of their own has the default AUTO, which leaves them to these. `explicit` is then the
    type of the other values. words: a tuple's elements may be words too.
    """

    default: Any
    help: str
    accepts: Iterable[str] | tuple[Callable, str] | None = None
    explicit: type = str
    words: bool = False

    @property
    def type(self) -> type:
        return self.explicit if self.default == AUTO else type(self.default)

    @property
    def element(self) -> type:
        """The type of a tuple's elements, which are ints where the default is empty; or that of the key."""
        return type((*self.default, 0)[0]) if self.type is tuple else self.type


POSITIVE = (lambda value: 0 < value < 2**31, "greater than 0 and below 2^31")
FINITE = (lambda value: -(2**31) < value < 2**31, "of either sign, below 2^31")
NOT_NEGATIVE = (lambda value: 0 <= value < 2**31, "at least 0 and below 2^31")
FRACTION = (lambda value: 0 <= value <= 1, "from 0 to 1")
PERCENT = (lambda value: 0 <= value <= 100, "from 0 to 100")
BELOW_ONE = (lambda value: 0 <= value < 1, "at least 0 and less than 1")
UNIT = (lambda value: 0 < value <= 1, "greater than 0 and at most 1")
SEED = (lambda value: 0 <= value < 2**32, "from 0 to 4294967295")
EMBEDDABLE = (lambda value: 4 <= value <= 8192 and value % 2 == 0, "that is even and at least 4, at most 8192")
LABEL = (lambda value: value != "" if isinstance(value, str) else 0 <= value < 2**31, "a label's number or its class's name")
SHORT = (lambda value: len(value) <= 1000, "of at most 1000 characters")
FOLDER = (lambda value: value != AUTO, "that is not auto (./auto is a folder)")


def to(limit: int, least: int = 1) -> tuple[Callable, str]:
    """What is accepted of a key by which memory, time or a program grows: far more than anyone trains with, and no mistype."""
    words = {0: "at least 0 and", 1: "greater than 0 and"}.get(least, f"at least {least} and")
    return (lambda value: least <= value <= limit), f"{words} at most {limit}"


STEPS = 100_000  # of a table, a chain or a grid, at most

KEYS: dict[str, Key] = {
    "task": Key("diffusion", "what is trained", TASKS),
    "seed": Key(0, "of parameters, batches, training noise", SEED),
    "addresses": Key(BY_PURPOSE, "random numbers of each purpose have their own, or share them as in older runs", ADDRESSES),
    "data.name": Key("digits", "the data set; any other name: that set of tensorflow-datasets", SOURCES),
    "data.split": Key("train", "the part of it that is trained on"),
    "data.data_dir": Key("", "tensorflow-datasets folder; empty: TFDS_DATA_DIR or ~/tensorflow_datasets", FOLDER),
    "data.raw_dir": Key("", "folder with the set's official raw files; empty: the variable DDPM_JAX_RAW", FOLDER),
    "data.memory_limit_mb": Key(2048, "MiB of decoded images above which a set is read as needed; 0: always", NOT_NEGATIVE),
    "data.path": Key("", "the images, sub-folders as labels"),
    "data.image_size": Key((64,), "height and width after centre-cropping and resizing; one number is both", to(8192)),
    "data.channels": Key(AUTO, "of all images; auto: they must be of one kind", ("grey", "rgb")),
    "data.pattern": Key("moons", "the distribution", toy2d.PATTERNS),
    "data.num_examples": Key(50_000, "how many points", to(10_000_000)),
    "data.seed": Key(0, "of the points", SEED),
    "data.flip": Key(False, "mirror images left to right at random"),
    "cond.labels": Key(False, "the network is shown the labels of the data"),
    "cond.dropout": Key(0.1, "share of the training examples that have the null label, of the unconditional model", BELOW_ONE),
    "network.name": Key("unet", "the architecture", NETWORKS),
    "network.channels": Key(128, "channels of the first level", EMBEDDABLE),
    "network.multipliers": Key((1, 2, 2, 2), "channels of each level, in multiples of the first", to(64)),
    "network.blocks": Key(2, "residual blocks per level", to(64)),
    "network.attention": Key((16,), "feature-map heights with self-attention", to(8192)),
    "network.heads": Key(1, "attention heads", to(1024)),
    "network.groups": Key(32, "groups of GroupNorm, at most: one of a single channel forgets the time added to it", to(8192)),
    "network.dropout": Key(0.0, "dropout rate in training", BELOW_ONE),
    "network.scale_shift_norm": Key(False, "time scales and shifts the normalised features instead of adding to them"),
    "network.residual_resample": Key(False, "residual blocks between levels instead of convolutions"),
    "network.head_channels": Key(0, "channels of one attention head; 0: `heads` heads everywhere", to(8192, 0)),
    "network.time_embedding": Key("sinusoidal", "of time; fourier: for log sigma (ve, edm)", ("sinusoidal", "fourier")),
    "network.fourier_scale": Key(16.0, "standard deviation of the Fourier features' frequencies", POSITIVE),
    "network.skip_rescale": Key(False, "residual sums divided by the square root of 2"),
    "network.resampling": Key("box", "images are halved and doubled by averages or the filter 1, 3, 3, 1", RESAMPLING),
    "network.resample_projection": Key(False, "residual blocks between levels project their input (1x1 convolution)"),
    "network.progressive_input": Key(False, "the image is halved too, and added to the features of every level"),
    "network.single_up_attention": Key(False, "on the way up, attention after a level's last block only"),
    "network.dtype": Key("float32", "of the computation; parameters are float32", ("float32", "bfloat16")),
    "process.name": Key("linear", "the noising process", PROCESSES),
    "process.steps": Key(AUTO, "T of a beta table, levels of ncsn", to(STEPS), int),
    "process.beta_start": Key(AUTO, "first beta", POSITIVE, float),
    "process.beta_end": Key(AUTO, "last beta", POSITIVE, float),
    "process.rescale": Key(AUTO, "betas times 1000 / T (improved diffusion), not as they are (Ho et al.)", explicit=bool),
    "process.offset": Key(AUTO, "the s of its formula", NOT_NEGATIVE, float),
    "process.beta_limit": Key(AUTO, "no beta above it", BELOW_ONE, float),
    "process.low": Key(AUTO, "where its logistic curve begins", FINITE, float),
    "process.high": Key(AUTO, "where it ends", FINITE, float),
    "process.tau": Key(AUTO, "its temperature", POSITIVE, float),
    "process.zero_terminal_snr": Key(AUTO, "shifted so that no signal is left at the end (Lin et al. 2024)", explicit=bool),
    "process.beta_min": Key(AUTO, "beta(0)", POSITIVE, float),
    "process.beta_max": Key(AUTO, "beta(1)", POSITIVE, float),
    "process.log_snr_limit": Key(AUTO, "log-SNR at t = 0", POSITIVE, float),
    "process.sigma_min": Key(AUTO, "least noise", POSITIVE, float),
    "process.sigma_max": Key(AUTO, "most noise", POSITIVE, float),
    "process.t_max": Key(AUTO, "the last time", UNIT, float),
    "process.ratio_max": Key(AUTO, "sigma / alpha at the last time", POSITIVE, float),
    "prediction.name": Key("eps", "what the network predicts", PREDICTIONS),
    "prediction.sigma_data": Key(AUTO, "standard deviation of the data", POSITIVE, float),
    "loss.name": Key("denoising", "denoising; hybrid: with the variance learned by the bound; vlb: the bound alone", LOSSES),
    "loss.weighting": Key("simple", "what squared error is averaged; simple: that of eps", WEIGHTINGS),
    "loss.variance": Key("learned_range", "of the reverse step, learned or fixed", VARIANCES),
    "loss.sigma_data": Key(AUTO, "standard deviation of the data", POSITIVE, float),
    "loss.gamma": Key(AUTO, "the largest SNR that counts", POSITIVE, float),
    "loss.k": Key(AUTO, "added to the SNR", POSITIVE, float),
    "loss.power": Key(AUTO, "of their sum, by which it divides", NOT_NEGATIVE, float),
    "loss.bias": Key(AUTO, "the log-SNR of half its weight", FINITE, float),
    "times.name": Key("uniform", "distribution of training times", TIMES),
    "times.t_min": Key(AUTO, "in continuous time: the lower end", POSITIVE, float),
    "times.mean": Key(AUTO, "mean of log(sigma / alpha)", FINITE, float),
    "times.std": Key(AUTO, "its standard deviation", POSITIVE, float),
    "times.location": Key(AUTO, "mean of the logit of t", FINITE, float),
    "times.scale": Key(AUTO, "its standard deviation", POSITIVE, float),
    "times.kept": Key(AUTO, "losses remembered for each time", to(100), int),
    "times.uniform_share": Key(AUTO, "share of times that are uniform", UNIT, float),
    "optim.name": Key("adam", "the optimizer", OPTIMIZERS),
    "optim.learning_rate": Key(2e-4, "after the warm-up", POSITIVE),
    "optim.warmup_steps": Key(5000, "steps of linear warm-up from 0", NOT_NEGATIVE),
    "optim.b1": Key(0.9, "decay of Adam's first moment", BELOW_ONE),
    "optim.b2": Key(0.999, "decay of Adam's second moment", BELOW_ONE),
    "optim.eps": Key(1e-8, "Adam's epsilon", POSITIVE),
    "optim.clip_norm": Key(1.0, "limit of the gradients' global norm; 0: no clipping", NOT_NEGATIVE),
    "ema.decays": Key((0.9999,), "of the averages of the parameters; each starts as (1 + step) / (10 + step)", BELOW_ONE),
    "train.steps": Key(800_000, "training steps in all", POSITIVE),
    "train.batch_size": Key(128, "images per step, over all devices", to(1_000_000)),
    "train.micro_batches": Key(1, "parts of a device's share of the batch, one after the other, to save memory", to(1_000_000)),
    "train.on_nonfinite": Key("stop", "at a loss or gradient that is not finite: stop, or skip that update", ("stop", "skip")),
    "train.max_skips": Key(10, "updates skipped in a row at which training stops after all", POSITIVE),
    "train.debug_nans": Key(False, "find the operation that gives the first NaN; slow"),
    "train.steps_per_call": Key(0, "steps per compiled call; 0: 1 on CPU, up to 10 elsewhere", to(10_000, 0)),
    "train.init": Key("", "directory of a run whose averaged parameters are those that a new run starts from"),
    "train.allow_changes": Key(False, "when continuing: optim, loss and train keys may differ from the run's, on purpose"),
    "train.log_every": Key(100, "steps between log lines", POSITIVE),
    "train.sample_every": Key(10_000, "steps between sample grids; 0: none before the end", NOT_NEGATIVE),
    "train.checkpoint_every": Key(10_000, "steps between checkpoints", POSITIVE),
    "train.keep_last": Key(2, "newest checkpoints kept", POSITIVE),
    "train.keep_every": Key(0, "checkpoints at multiples of this step are kept for good; 0: none", NOT_NEGATIVE),
    "sampler.checkpoint": Key(0, "--mode=sample, eval: the step of the checkpoint that is used; 0: the newest", NOT_NEGATIVE),
    "sampler.ema": Key(0, "which of ema.decays averages the parameters it uses, counted from 0", NOT_NEGATIVE),
    "sampler.name": Key("ancestral", "the sampler", SAMPLERS),
    "sampler.steps": Key(1000, "points of the time grid, the first at the noise end", to(STEPS)),
    "sampler.grid": Key("uniform", "how they are spaced", GRIDS),
    "sampler.t_min": Key(AUTO, "the last of them in continuous time", POSITIVE, float),
    "sampler.sections": Key("10,10,15,15,15", "their counts per section of the chain, or ddim50", SHORT),
    "sampler.rho": Key(AUTO, "karras: sigma^(1/rho) is evenly spaced; polyexponential: 1 is even in log-SNR", POSITIVE, float),
    "sampler.beta_a": Key(AUTO, "of the beta distribution of times; 1 with beta_b = 1: uniform", POSITIVE, float),
    "sampler.beta_b": Key(AUTO, "below 1: denser at the noise end", POSITIVE, float),
    "sampler.times": Key((1.0,), "the times themselves", NOT_NEGATIVE),
    "sampler.variance": Key(AUTO, "variance of the reverse step; a learned one where the run has it", VARIANCES),
    "sampler.eta": Key(AUTO, "share of fresh noise", FRACTION, float),
    "sampler.noise_scale": Key(AUTO, "noise in units of that of the reverse SDE", NOT_NEGATIVE, float),
    "sampler.variance_scale": Key(AUTO, "variance of x0 given x where there is no signal, times 2", NOT_NEGATIVE, float),
    "sampler.s_churn": Key(AUTO, "noise added anew, over all steps (Karras et al. 2022); 0: none", NOT_NEGATIVE, float),
    "sampler.s_min": Key(AUTO, "least sigma / alpha at which it is added", NOT_NEGATIVE, float),
    "sampler.s_max": Key(AUTO, "greatest", POSITIVE, float),
    "sampler.s_noise": Key(AUTO, "its standard deviation", POSITIVE, float),
    "sampler.predictor": Key(AUTO, "the sampler that is corrected", PREDICTORS),
    "sampler.corrector_steps": Key(AUTO, "Langevin steps before each of its steps", to(100), int),
    "sampler.snr": Key(AUTO, "their size, as a share of noise to score", POSITIVE, float),
    "sampler.norms": Key(AUTO, "norms of each sample, or their mean over the batch", NORMS),
    "sampler.langevin_steps": Key(AUTO, "steps per level", to(10_000), int),
    "sampler.rate": Key(AUTO, "their size in units of the noise's variance", POSITIVE, float),
    "sampler.order": Key(AUTO, "how many predictions make a step", to(4), int),
    "sampler.corrector": Key(AUTO, "whether the next prediction corrects a step", explicit=bool),
    "sampler.corrector_order": Key(AUTO, "past predictions in that; 0: none", to(3, 0), int),
    "sampler.variant": Key(AUTO, "bh1 or bh2, their function B(h)", tuple(UNIPC_B)),
    "sampler.lower_order_final": Key(AUTO, "order 1 at the last step, 2 at the one before", explicit=bool),
    "sampler.slope": Key(AUTO, "weight of the last two predictions' slope", tuple(SLOPES)),
    "sampler.tau": Key(AUTO, "its square: noise variance in units of that of the reverse SDE", NOT_NEGATIVE, float),
    "sampler.remainder": Key(AUTO, "evaluations modulo 3", to(2, 0), int),
    "sampler.published": Key(AUTO, "as in their code: dpmpp_3m, deis of order 2; euler, heun with EDM's churn", explicit=bool),
    "sampler.rtol": Key(AUTO, "relative tolerance", POSITIVE, float),
    "sampler.atol": Key(AUTO, "absolute tolerance", POSITIVE, float),
    "sampler.max_evaluations": Key(AUTO, "per transition", to(10_000_000, 7), int),
    "sampler.last": Key("denoise", "what is returned at the end of the grid", LASTS),
    "sampler.clip": Key("rederive", "clipping of x0 to [-1, 1]; eps derived from it again, kept, or no clipping", CLIPS),
    "sampler.labels": Key((), "with cond.labels: of the samples, in turn; (): every class", LABEL, words=True),
    "sampler.num_samples": Key(64, "images", to(1_000_000)),
    "sampler.batch_size": Key(64, "images sampled at once, at most", to(100_000)),
    "sampler.save": Key("npz", "as one .npz, as guided-diffusion's evaluator reads it, or as a folder of PNGs", tuple(WAYS)),
    "sampler.frames": Key(24, "frames of the animation from noise to samples; 0 or 1: none", to(1000, 0)),
    "sampler.seed": Key(0, "of the sampling noise", SEED),
    "guidance.scale": Key(1.0, "w of eps_u + w (eps_c - eps_u), eps_u with the null label; 1: the conditional model", FINITE),
    "guidance.interval_low": Key(0.0, "least sigma / alpha at which it acts", NOT_NEGATIVE),
    "guidance.interval_high": Key(0.0, "greatest; 0: no limit", NOT_NEGATIVE),
    "guidance.rescale": Key(0.0, "share of the guided output given the conditional's deviation (Lin et al. 2024)", FRACTION),
    "guidance.threshold": Key(0.0, "percentile of |x0| for dynamic thresholding, as 99.5; 0: none", PERCENT),
    "guidance.weak": Key("", "directory of a weaker run, whose prediction takes the place of eps_u (autoguidance)"),
    "guidance.classifier": Key("", "directory of a classifier's run: scale times its gradient is added to the score"),
    "guidance.form": Key("score", "classifier: score; or mean, of ancestral steps, the shift of theirs", FORMS),
    "inpaint.images": Key("", "--mode=sample: whose unknown pixels are drawn anew: a PNG, a folder, or a .npz of samples"),
    "inpaint.mask": Key("", "a PNG of their size, white where pixels are known, black where they are drawn anew"),
    "inpaint.method": Key("repaint", "how the known pixels act on the others", INPAINTING),
    "inpaint.resamplings": Key(10, "how often each step is made", to(1000)),
    "inpaint.zeta": Key(1.0, "length of its steps along the gradient", POSITIVE),
    "inpaint.iterations": Key(5, "of conjugate gradients in each call of the denoiser", to(1000)),
    "eval.bpd": Key(False, "bits per dimension, by the probability-flow ODE and by the variational bound"),
    "eval.split": Key("test", "the part of the data that is evaluated"),
    "eval.num_examples": Key(0, "its first examples, so many; 0: all", NOT_NEGATIVE),
    "eval.batch_size": Key(64, "examples evaluated at once, at most", to(100_000)),
    "eval.loss_every": Key(0, "training: steps between losses on it, a multiple of train.log_every; 0: none", NOT_NEGATIVE),
    "eval.loss_examples": Key(1024, "its first examples, so many, of which they are the means; 0: all", NOT_NEGATIVE),
    "eval.seed": Key(0, "of dequantisation, probes, the bound's noise and that of eval.loss_every", SEED),
    "eval.solver": Key("dopri5", "of the ODE: dopri5 is adaptive", SOLVERS),
    "eval.steps": Key(AUTO, "points of the time grid, both ends among them", to(STEPS, 2), int),
    "eval.grid": Key(AUTO, "how they are spaced", FROM_END_TO_END),
    "eval.rtol": Key(AUTO, "tolerated error, relative", POSITIVE, float),
    "eval.atol": Key(AUTO, "tolerated error, absolute", POSITIVE, float),
    "eval.probe": Key("rademacher", "of the divergence; exact: its trace, for data of few dimensions", PROBES),
    "eval.probes": Key(1, "rademacher, gaussian: how many per example", to(1000)),
    "eval.bound_steps": Key(1000, "steps of the bound's chain in continuous time; a table has its own", to(STEPS, 2)),
    "eval.bound_terms": Key(0, "transitions evaluated, one in each of so many equal parts of the chain; 0: all", to(STEPS, 0)),
    "eval.variance": Key(AUTO, "of the bound's reverse steps; auto: a learned one, else large", VARIANCES),
}

# What may differ between a run directory and the command that continues it: nothing that has entered the parameters, but for
# rounding. Like the number of devices, micro_batches changes the order of sums, and is what a smaller device must change.
CHANGEABLE = (
    "data.data_dir", "data.raw_dir", "data.path", "data.memory_limit_mb", "sampler.", "guidance.", "inpaint.", "eval.",
    "train.steps", "train.steps_per_call", "train.log_every", "train.sample_every", "train.checkpoint_every",
    "train.keep_last", "train.keep_every", "train.micro_batches", "train.on_nonfinite", "train.max_skips", "train.debug_nans",
    "train.allow_changes",
)  # fmt: skip

# What besides may be changed on purpose, with train.allow_changes: how parameters are improved, not what they mean or are.
ON_PURPOSE = ("optim.", "loss.", "train.")
NEVER_CHANGED = ("optim.name", "train.init")
# Directories of other runs that guide the samples of this one. They are taken from the command, never from a run directory.
GUIDES = ("guidance.weak", "guidance.classifier")
# What is of one command: a run directory does not lead to these files, nor back to this checkpoint.
OF_THE_COMMAND = ("inpaint.images", "inpaint.mask", "sampler.checkpoint", "train.allow_changes")

# Of a tuple: how many elements it has, at least and at most, and of what.
LENGTHS = {
    "data.image_size": (1, 2, "number", "numbers"),
    "network.multipliers": (1, 16, "level", "levels"),
    "network.attention": (0, 16, "height", "heights"),
    "ema.decays": (1, 16, "decay (0.0: the parameters of the last step)", "decays"),
    "sampler.times": (1, STEPS, "time", "times"),
    "sampler.labels": (0, STEPS, "label", "labels"),
}


def base() -> ConfigDict:
    """Every key with its default: the CIFAR-10 settings of Ho et al. 2020 but for the data."""
    return unflatten({key: entry.default for key, entry in KEYS.items()})


def cast(key: str, value: Any) -> Any:
    """The value as the key's type, where it means one: an int as a float, a whole float as an int, a list or one number as a
    tuple. Any other value comes back as it is."""
    entry = KEYS[key]
    if entry.type is not tuple:
        return _number(entry.type, value)
    if type(value) in (int, float) or (entry.words and type(value) is str):
        value = (value,)
    return tuple(_number(entry.element, element) for element in value) if isinstance(value, list | tuple) else value


def _number(wanted, value):
    if wanted is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    return int(value) if wanted is int and type(value) is float and value.is_integer() else value


class _Leaf(FieldReference):
    """The value of a key in a config, to which a file may assign what `cast` makes the key's type, and nothing else.

    ml_collections' own values take the type of the default alone, and "auto" would take strings alone.
    """

    _key = ""

    def __init__(self, key: str, value: Any):
        super().__init__(cast(key, value), object)
        self._key = key

    def set(self, value: Any, type_safe: bool = True) -> None:
        """TypeError for another type; what is wrong besides, `validate` finds."""
        if self._key and not isinstance(value, FieldReference):
            value, entry = cast(self._key, value), KEYS[self._key]
            if type(value) is not entry.type and not (value == AUTO == entry.default) and type_safe:
                raise TypeError(f"config.{self._key} takes {kind(self._key)}, found {value!r}")
        super().set(value, type_safe)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


# ml_collections would print an object for each of them
yaml.add_representer(FieldReference, lambda dumper, reference: dumper.represent_data(reference.get()))


def unflatten(flat: dict[str, Any]) -> ConfigDict:
    """{"a.b": value} as a ConfigDict of sections. Lists (of JSON) become tuples."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        value = tuple(value) if isinstance(value, list) else value
        section[leaf] = _Leaf(key, value) if key in KEYS else value
    return ConfigDict(nested)


def flatten(config: ConfigDict) -> dict[str, Any]:
    """{"a.b": value} for every key of the config."""
    flat = {}
    for name, value in config.items():
        inner = {f"{name}.{key}": v for key, v in flatten(value).items()} if isinstance(value, ConfigDict) else {name: value}
        flat.update(inner)
    return flat


def chooser(key: str) -> str:
    """The key whose choices decide whether this one applies (sampler.grid for sampler.rho), or ""."""
    section, _, leaf = key.partition(".")
    for other, entry in KEYS.items():
        table = entry.accepts if other.startswith(section + ".") and isinstance(entry.accepts, dict) else {}
        if any(takes(made, leaf) for made in table.values()):
            return other
    return ""


def value_of(key: str, config: ConfigDict) -> Any:
    """The value that the config gives the key."""
    section, _, leaf = key.rpartition(".")
    return config[section][leaf] if section else config[leaf]


def acting(key: str, config: ConfigDict) -> Any:
    """The value that acts: for AUTO the default of the constructor that is chosen. AUTO where that is no value of a config."""
    value = value_of(key, config)
    return _own(key, config) if value == AUTO else value


def is_default(key: str, config: ConfigDict) -> bool:
    """Whether the value that acts is the one that acts by default."""
    default = KEYS[key].default
    return acting(key, config) == (_own(key, config) if default == AUTO else default)


def _own(key, config):
    by = chooser(key)
    own = own_default(_chosen(by, config), key.rpartition(".")[2], AUTO) if by else AUTO
    return AUTO if own is None or own == math.inf else own


def _chosen(by, config):
    """The constructor that the key `by` chooses; None for a name of another version."""
    table, name = KEYS[by].accepts, acting(by, config)
    return table[name] if _accepted(name, table) else None


def takers(key: str) -> dict[str, Any]:
    """{name: its own default, or None} of the choices that take the key."""
    by, leaf = chooser(key), key.rpartition(".")[2]
    return {name: own_default(made, leaf) for name, made in KEYS[by].accepts.items() if takes(made, leaf)} if by else {}


def why_not(key: str, config: ConfigDict) -> str:
    """Why the key does nothing in this config, or ""."""
    for idle, is_so, reason in IDLE:
        if idle == key and is_so(config):
            return reason
    by = chooser(key)
    if not by or key == "sampler.steps":  # a grid that has a length of its own is held to it
        return ""
    if not takes(_chosen(by, config), key.rpartition(".")[2]):
        return f"does not apply to {by}={acting(by, config)}"
    return why_not(by, config)


def _on_a_table(config):
    return takes(_chosen("process.name", config), "steps")


def _without_guidance(config):
    return config.guidance.scale == 1 and not config.guidance.classifier


def _classifies(config):
    return config.task == "classifier"


AT_SCALE_1 = (_without_guidance, "does nothing at config.guidance.scale=1, the conditional model alone")
NO_CHURN = (lambda config: acting("sampler.s_churn", config) == 0, "does nothing without churn, config.sampler.s_churn")
FIRST_STEP = (_on_a_table, "does nothing on a table of steps, which has its own times")
NO_LABELS = (lambda config: not config.cond.labels, "does nothing without labels, the variant cond")

# Of these a classifier has none, but for the average that it guides with and the film of the noising process.
OF_SAMPLES = tuple(
    key for key in KEYS if key.startswith(("loss.", "guidance.", "sampler.")) and key not in ("sampler.ema", "sampler.frames")
)

# Keys that do nothing in some configs although the choice takes them: (key, whether it is one of these configs, why).
IDLE: list[tuple[str, Callable[[ConfigDict], bool], str]] = [
    ("times.t_min", *FIRST_STEP),
    ("sampler.t_min", *FIRST_STEP),
    ("eval.bound_steps", *FIRST_STEP),
    ("sampler.s_min", *NO_CHURN),
    ("sampler.s_max", *NO_CHURN),
    ("sampler.s_noise", *NO_CHURN),
    (
        "sampler.published",
        lambda config: config.sampler.name == "deis" and acting("sampler.order", config) < 3,
        "does nothing in deis of order 1 and 2",
    ),
    (
        "sampler.published",
        lambda config: config.sampler.name in ("euler", "heun") and NO_CHURN[0](config),
        NO_CHURN[1],
    ),
    ("process.zero_terminal_snr", lambda config: config.process.name == "jsd", "does nothing to jsd, which ends at zero SNR"),
    ("guidance.interval_low", *AT_SCALE_1),
    ("guidance.interval_high", *AT_SCALE_1),
    ("guidance.rescale", *AT_SCALE_1),
    ("guidance.weak", *AT_SCALE_1),
    ("cond.dropout", *NO_LABELS),
    ("network.fourier_scale", lambda config: config.network.time_embedding != "fourier", "needs time_embedding=fourier"),
    ("network.resample_projection", lambda config: not config.network.residual_resample, "needs residual_resample=true"),
    ("network.heads", lambda config: config.network.head_channels != 0, "does nothing where network.head_channels is not 0"),
    ("network.single_up_attention", lambda config: not config.network.attention, "needs network.attention"),
    ("network.single_up_attention", _classifies, "does nothing in a classifier, which has no way up"),
    ("train.max_skips", lambda config: config.train.on_nonfinite != "skip", "needs train.on_nonfinite=skip"),
    ("eval.probes", lambda config: config.eval.probe == "exact", "does nothing with eval.probe=exact"),
    *((key, _classifies, "does nothing in a classifier, config.task") for key in OF_SAMPLES),
]


def applies(key: str, config: ConfigDict) -> bool:
    """Whether the key does something in this config."""
    return not why_not(key, config)


def check_applies(key: str, config: ConfigDict) -> None:
    """Raises UserError for a key that does nothing in this config."""
    if reason := why_not(key, config):
        raise UserError(f"config.{key} {reason}: leave it out.")


def validate(config: ConfigDict) -> None:
    """Raises UserError for what `check` finds, and for choices of the kernel that do not go together."""
    check(config)
    jax.local_devices()  # where there is none `explain` knows this error; one from inside an operation has lost its traceback
    try:
        kernel(config)
    except ValueError as error:
        tell_machine(error)
        settings = ", ".join(f"config.{key}={acting(key, config)}" for key in _concerned(getattr(error, "keys", ()), config))
        raise UserError(f"These settings do not go together: {settings}. The reason: {error}.") from error


def _concerned(keys, config):
    """Those of the keys that act; for a section, as process., its choice and what is not as by default."""
    for key in keys:
        inside = [known for known in KEYS if known.startswith(key)] if key.endswith(".") else [key]
        yield from (
            known
            for known in inside
            if applies(known, config) and (known == key or known == f"{key}name" or not is_default(known, config))
        )


def check(config: ConfigDict) -> None:
    """Raises UserError for an unknown key, a missing key, a value that is not accepted, labels or averages that there are not.

    It computes nothing, so that a config file can be read where no device is.
    """
    check_complete(config)
    for key, value in flatten(config).items():
        check_value(key, value)
    _check_conditioning(config)
    decays = config.ema.decays
    if config.sampler.ema >= len(decays):
        raise UserError(
            f"config.sampler.ema is {config.sampler.ema}, but config.ema.decays has {len(decays)}: take "
            + ", ".join(f"{i} for {decay}" for i, decay in enumerate(decays))
            + "."
        )


def _check_conditioning(config: ConfigDict) -> None:
    """Raises UserError for what only a run with labels can do, and for guidance that never acts."""
    labels, c = config.sampler.labels, config.guidance
    if config.task == "classifier" and config.cond.labels:
        raise UserError("The variant cond shows a network the labels that a classifier (config.task) is to find: leave it out.")
    if c.form != "score" and not c.classifier:
        raise UserError(f"config.guidance.form={c.form} is of a classifier, and none is given: leave it out.")
    if c.rescale and c.classifier:
        raise UserError("config.guidance.rescale is of two predictions, and a classifier makes none: leave one of them out.")
    if c.weak and c.classifier:
        raise UserError("config.guidance.weak and config.guidance.classifier are both given: take one of them.")
    if labels and not (config.cond.labels or c.classifier):
        raise UserError(
            f"config.sampler.labels is {labels}, but this run is not conditional: leave it out, or train one with the variant "
            "cond."
        )
    if c.scale != 1 and not (c.weak or c.classifier) and not (config.cond.labels and config.cond.dropout):
        lacks = "the null label was not trained, cond.dropout being 0" if config.cond.labels else "it is not conditional"
        raise UserError(
            f"config.guidance.scale is {c.scale}, but this run has no unconditional model besides ({lacks}): leave it out, "
            "train one with the variant cond, or give a weaker run, --config.guidance.weak=<its directory>."
        )
    if 0 < c.interval_high <= c.interval_low:
        raise UserError(
            f"config.guidance.interval_low is {c.interval_low} and interval_high {c.interval_high}, so that guidance never "
            "acts: raise the latter, or set it to 0, no limit."
        )


def check_complete(config: ConfigDict) -> None:
    """Raises UserError for an unknown key or a missing one."""
    flat = flatten(config)
    for key in flat:
        if key not in KEYS:
            raise unknown_key(key)
    for key in KEYS:
        if key not in flat:
            raise UserError(f"The config lacks {key} ({KEYS[key].help}): start it from ddpm_jax.config.base().")


def check_value(key: str, value: Any, found: Any = None) -> None:
    """Raises UserError for a value of the wrong type, or one that is not accepted. found: the value as it was typed."""
    entry, accepts = KEYS[key], KEYS[key].accepts
    if isinstance(value, str) and value == entry.default == AUTO:
        return
    found = value if found is None else found
    wrong = UserError(f"config.{key} takes {kind(key)}, found {found!r}.{_suggestion(key, value)}")
    if type(value) is not entry.type:
        raise wrong
    least, most, one, several = LENGTHS.get(key, (0, math.inf, "", ""))
    if entry.type is tuple and len(value) > most:
        raise UserError(f"config.{key} takes at most {most} {several}, found {len(value)}.")
    for element in value if entry.type is tuple else (value,):
        word = entry.words and type(element) is str
        if not (word or type(element) is entry.element) or (accepts is not None and not _accepted(element, accepts)):
            raise wrong
    if entry.type is tuple and len(value) < least:
        raise UserError(f"config.{key} needs at least one {one}, found ().")


def _is_rule(accepts) -> bool:
    return isinstance(accepts, tuple) and callable(accepts[0])


def _accepted(value, accepts) -> bool:
    return accepts[0](value) if _is_rule(accepts) else value in accepts


def _suggestion(key, value) -> str:
    accepts = KEYS[key].accepts
    if accepts is None or _is_rule(accepts) or not isinstance(value, str):
        return ""
    if ours := here(value, ELSEWHERE.get(key, {})):
        return f" What others call so is here {ours}."
    near = nearest(value, accepts)
    return f" Did you mean {near[0]}?" if near else ""


def kind(key: str) -> str:
    """The type and accepted values of a key, in words."""
    entry, accepts = KEYS[key], KEYS[key].accepts
    if entry.type is tuple:
        numbers = {int: "1,2", float: "0.9,0.5"}[entry.element]
        example = f" or words, as {numbers} or cat,dog" if entry.words else f", as {numbers} or ({numbers})"
        words = f"a tuple of {entry.element.__name__}s{example}"
        return words + (f", each {accepts[1]}" if accepts else "")
    auto = [AUTO] if entry.default == AUTO else []
    if accepts is not None and not _is_rule(accepts):
        return "one of " + ", ".join([*auto, *accepts])
    words = {int: "an int", float: "a float", bool: "true or false", str: "a string"}[entry.type]
    return " or ".join([*auto, f"{words} {accepts[1]}" if accepts else words])


# What other codes call our sections and keys.
SECTIONS = {
    "optimizer": "optim", "opt": "optim", "model": "network", "net": "network", "unet": "network", "dataset": "data",
    "training": "train", "trainer": "train", "sampling": "sampler", "diffusion": "process", "schedule": "process",
    "scheduler": "process", "sde": "process", "cfg": "guidance", "evaluation": "eval", "conditioning": "cond",
}  # fmt: skip
ELSEWHERE = {"sampler.name": SAMPLERS_ELSEWHERE, "sampler.grid": GRIDS_ELSEWHERE}  # what choices are called by others
NAMES = {
    "optim.learning_rate": "lr lrate learningrate",
    "optim.warmup_steps": "warmup lr_warmup warmup_iters lr_warmup_steps",
    "optim.clip_norm": "grad_clip gradient_clip max_grad_norm clip_grad grad_norm",
    "optim.b1": "beta1 adam_beta1",
    "optim.b2": "beta2 adam_beta2",
    "optim.eps": "epsilon adam_eps adam_epsilon",
    "optim.name": "optimizer",
    "train.batch_size": "bs batchsize batch train_batch_size",
    "train.steps": "epochs num_epochs iters n_iters max_steps num_steps train_steps num_train_steps",
    "train.micro_batches": "accumulate grad_accum gradient_accumulation gradient_accumulation_steps microbatch",
    "train.checkpoint_every": "save_every save_interval checkpoint_interval",
    "train.log_every": "log_interval",
    "ema.decays": "ema_decay ema_rate decay",
    "process.name": "schedule beta_schedule noise_schedule scheduler sde",
    "process.steps": "timesteps num_timesteps diffusion_steps num_train_timesteps num_diffusion_timesteps num_scales",
    "prediction.name": "objective parameterization prediction_type pred_type predict mean_type model_mean_type",
    "sampler.name": "sampling_method sampler_name",
    "sampler.steps": "num_inference_steps sampling_steps sample_steps nfe timestep_respacing",
    "sampler.num_samples": "n_samples num_images n_images",
    "sampler.labels": "classes class_labels class_label",
    "guidance.scale": "cfg_scale guidance_scale cfg guidance_weight",
    "cond.labels": "class_cond conditional class_conditional",
    "cond.dropout": "p_uncond label_dropout cond_drop_prob class_dropout_prob",
    "network.channels": "base_channels model_channels num_channels width dim nf ch",
    "network.multipliers": "dim_mults channel_mult channel_mults ch_mult channel_multipliers",
    "network.blocks": "num_res_blocks n_res_blocks num_blocks depth",
    "network.attention": "attention_resolutions attn_resolutions",
    "network.heads": "num_heads n_heads",
    "network.dtype": "precision mixed_precision fp16 bf16 use_fp16",
    "data.name": "dataset dataset_name",
    "data.path": "data_path root image_folder",
    "data.image_size": "resolution img_size size",
    "data.flip": "random_flip hflip horizontal_flip",
    "seed": "random_seed rng_seed",
}


def like(key: str) -> list[str]:
    """The keys that a mistyped key may mean: what other codes call so, those of that name in any section, or the nearest."""
    section, _, leaf = key.lower().rpartition(".")
    here = f"{SECTIONS.get(section, section)}.{leaf}"
    named = [ours for ours, theirs in NAMES.items() if leaf in theirs.split()]
    elsewhere = [known for known in KEYS if known.rpartition(".")[2] == leaf]
    return [here] * (here in KEYS) or named or elsewhere or nearest(key, KEYS)


def unknown_key(key: str) -> UserError:
    """The error for a key that does not exist: names the sections that have it, or the nearest key, or the section's keys."""
    key = key.strip(".")
    inside = [known for known in KEYS if known.startswith(key + ".")]
    siblings = [known for known in KEYS if "." in key and known.startswith(key.rpartition(".")[0] + ".")]
    if inside:
        hint = f"It is a section: set one of its keys, {', '.join(inside)}."
    elif like(key):
        hint = f"Did you mean {' or '.join(like(key))}?"
    elif siblings:
        section = key.rpartition(".")[0]
        hint = f"The keys of {section} are {', '.join(known.removeprefix(section + '.') for known in siblings)}."
    else:
        sections = sorted({known.partition(".")[0] for known in KEYS if "." in known})
        hint = f"The keys are {', '.join(known for known in KEYS if '.' not in known)} and those of {', '.join(sections)}."
    return UserError(f"There is no config key {key!r}. {hint}")


def changes(saved: ConfigDict, given: ConfigDict) -> dict[str, list]:
    """{key: [saved, given]} of the keys in which two configs differ and that may not change when a run is continued."""
    saved, given = fixed(saved), fixed(given)
    return {key: [saved[key], given[key]] for key in saved if key in given and saved[key] != given[key]}


def differences(saved: ConfigDict, given: ConfigDict) -> list[str]:
    """`changes` as "key: saved -> given", without those that `given` makes on purpose."""
    found = changes(saved, given)
    if given.train.allow_changes:
        same_outputs = kernel(saved).loss.learns == kernel(given).loss.learns  # of the network
        never = NEVER_CHANGED if same_outputs else (*NEVER_CHANGED, "loss.name", "loss.variance")
        found = {key: pair for key, pair in found.items() if key in never or not key.startswith(ON_PURPOSE)}
    return [f"{key}: {before!r} -> {after!r}" for key, (before, after) in found.items()]


def fixed(config: ConfigDict) -> dict[str, Any]:
    """The keys that may not change when a run is continued, but for those that do nothing, with the values that act."""
    keys = [key for key in KEYS if not any(key == c or (c.endswith(".") and key.startswith(c)) for c in CHANGEABLE)]
    return {key: acting(key, config) for key in keys if applies(key, config)}
