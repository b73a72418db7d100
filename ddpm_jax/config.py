"""The config: every key with its default, its meaning and what it accepts; the validator."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ddpm_jax.construct import takes
from ddpm_jax.data import SOURCES, toy2d
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.inverse import INPAINTING
from ddpm_jax.diffusion.likelihood import FROM_END_TO_END, PROBES, SOLVERS
from ddpm_jax.diffusion.losses import LOSSES, WEIGHTINGS
from ddpm_jax.diffusion.posterior import VARIANCES
from ddpm_jax.diffusion.predictions import PREDICTIONS
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import LASTS
from ddpm_jax.diffusion.samplers import NORMS, PREDICTORS, SAMPLERS
from ddpm_jax.diffusion.times import TIMES
from ddpm_jax.diffusion.transforms import CLIPS
from ddpm_jax.errors import UserError
from ddpm_jax.models import NETWORKS
from ddpm_jax.models.resampling import RESAMPLING
from ddpm_jax.training.guided import FORMS
from ddpm_jax.training.optimizers import OPTIMIZERS
from ddpm_jax.training.tasks import TASKS, kernel


class Key(NamedTuple):
    """A key's default (int, float, bool, str or tuple; its type is the key's type), meaning, and accepted values.

    accepts: names to choose from, or (predicate, its words); for a tuple it speaks of each element. None: any of the type.
    """

    default: Any
    help: str
    accepts: Iterable[str] | tuple[Callable, str] | None = None


POSITIVE = (lambda value: 0 < value < 2**31, "greater than 0 and below 2^31")
FINITE = (lambda value: -(2**31) < value < 2**31, "of either sign, below 2^31")
NOT_NEGATIVE = (lambda value: 0 <= value < 2**31, "at least 0 and below 2^31")
FRACTION = (lambda value: 0 <= value <= 1, "from 0 to 1")
PERCENT = (lambda value: 0 <= value <= 100, "from 0 to 100")
BELOW_ONE = (lambda value: 0 <= value < 1, "at least 0 and less than 1")
UNIT = (lambda value: 0 < value <= 1, "greater than 0 and at most 1")
SEED = (lambda value: 0 <= value < 2**32, "from 0 to 4294967295")
FROM_TWO = (lambda value: 2 <= value < 2**31, "from 2 on")
EMBEDDABLE = (lambda value: 4 <= value < 2**31 and value % 2 == 0, "that is even and at least 4")

KEYS: dict[str, Key] = {
    "task": Key("diffusion", "what is trained", TASKS),
    "seed": Key(0, "of parameters, batches, training noise", SEED),
    "data.name": Key("digits", "the data set; any other name: that set of tensorflow-datasets", SOURCES),
    "data.split": Key("train", "the part of it that is trained on"),
    "data.data_dir": Key("", "tensorflow-datasets folder; empty: TFDS_DATA_DIR or ~/tensorflow_datasets"),
    "data.raw_dir": Key("", "folder with the set's official raw files; empty: the variable DDPM_JAX_RAW"),
    "data.memory_limit_mb": Key(2048, "MiB of decoded images above which a set is read as needed; 0: always", NOT_NEGATIVE),
    "data.path": Key("", "folder: the images, sub-folders as labels"),
    "data.image_size": Key(64, "folder: height and width after resizing and centre-cropping", POSITIVE),
    "data.channels": Key("auto", "folder: of all images; auto: they must be of one kind", ("auto", "grey", "rgb")),
    "data.pattern": Key("moons", "toy2d: the distribution", toy2d.PATTERNS),
    "data.num_examples": Key(50_000, "toy2d: how many points", POSITIVE),
    "data.seed": Key(0, "toy2d: of the points", SEED),
    "data.flip": Key(False, "mirror images left to right at random"),
    "cond.labels": Key(False, "the network is shown the labels of the data"),
    "cond.dropout": Key(0.1, "share of the training examples that have the null label, of the unconditional model", BELOW_ONE),
    "network.name": Key("unet", "the architecture", NETWORKS),
    "network.channels": Key(128, "channels of the first level", EMBEDDABLE),
    "network.multipliers": Key((1, 2, 2, 2), "channels of each level, in multiples of the first", POSITIVE),
    "network.blocks": Key(2, "residual blocks per level", POSITIVE),
    "network.attention": Key((16,), "feature-map heights with self-attention", POSITIVE),
    "network.heads": Key(1, "attention heads", POSITIVE),
    "network.groups": Key(32, "groups of GroupNorm, at most: one of a single channel forgets the time added to it", POSITIVE),
    "network.dropout": Key(0.0, "dropout rate in training", BELOW_ONE),
    "network.scale_shift_norm": Key(False, "unet: time scales and shifts the normalised features instead of adding to them"),
    "network.residual_resample": Key(False, "unet: residual blocks between levels instead of convolutions"),
    "network.head_channels": Key(0, "unet: channels of one attention head; 0: `heads` heads everywhere", NOT_NEGATIVE),
    "network.time_embedding": Key("sinusoidal", "unet: of time; fourier: for log sigma (ve, edm)", ("sinusoidal", "fourier")),
    "network.fourier_scale": Key(16.0, "unet: standard deviation of the Fourier features' frequencies", POSITIVE),
    "network.skip_rescale": Key(False, "unet: residual sums divided by the square root of 2"),
    "network.resampling": Key("box", "unet: images are halved and doubled by averages or the filter 1, 3, 3, 1", RESAMPLING),
    "network.resample_projection": Key(False, "unet: residual blocks between levels project their input (1x1 convolution)"),
    "network.progressive_input": Key(False, "unet: the image is halved too, and added to the features of every level"),
    "network.single_up_attention": Key(False, "unet: on the way up, attention after a level's last block only"),
    "network.dtype": Key("float32", "of the computation; parameters are float32", ("float32", "bfloat16")),
    "process.name": Key("linear", "the noising process", PROCESSES),
    "process.steps": Key(1000, "T of a beta table, levels of ncsn", POSITIVE),
    "process.beta_start": Key(0.0, "first beta; 0: as in the table's paper", NOT_NEGATIVE),
    "process.beta_end": Key(0.0, "last beta; 0: as in the table's paper", NOT_NEGATIVE),
    "process.rescale": Key(False, "linear: betas times 1000 / T (improved diffusion), not as they are (Ho et al.)"),
    "process.offset": Key(0.008, "cosine: the s of its formula", NOT_NEGATIVE),
    "process.beta_limit": Key(0.999, "cosine: no beta above it", BELOW_ONE),
    "process.low": Key(-3.0, "sigmoid_alpha_bar: where its logistic curve begins", FINITE),
    "process.high": Key(3.0, "sigmoid_alpha_bar: where it ends", FINITE),
    "process.tau": Key(1.0, "sigmoid_alpha_bar: its temperature", POSITIVE),
    "process.zero_terminal_snr": Key(False, "tables: shifted so that no signal is left at the end (Lin et al. 2024)"),
    "process.beta_min": Key(0.1, "vp, sub_vp: beta(0)", POSITIVE),
    "process.beta_max": Key(20.0, "vp, sub_vp: beta(1)", POSITIVE),
    "process.log_snr_limit": Key(20.0, "continuous_cosine: log-SNR at t = 0", POSITIVE),
    "process.sigma_min": Key(0.0, "ve, ncsn, edm: least noise; 0: as in the process's paper", NOT_NEGATIVE),
    "process.sigma_max": Key(0.0, "ve, ncsn, edm: most noise; 0: as in the process's paper", NOT_NEGATIVE),
    "process.t_max": Key(1 - 1e-5, "rectified_flow: the last time", UNIT),
    "process.ratio_max": Key(160.0, "trig_flow: sigma / alpha at the last time", POSITIVE),
    "prediction.name": Key("eps", "what the network predicts", PREDICTIONS),
    "prediction.sigma_data": Key(0.5, "edm: standard deviation of the data", POSITIVE),
    "loss.name": Key("denoising", "denoising; hybrid: with the variance learned by the bound; vlb: the bound alone", LOSSES),
    "loss.weighting": Key("simple", "denoising, hybrid: what squared error is averaged; simple: that of eps", WEIGHTINGS),
    "loss.variance": Key("learned_range", "hybrid, vlb: of the reverse step, learned or fixed", VARIANCES),
    "loss.sigma_data": Key(0.5, "edm: standard deviation of the data", POSITIVE),
    "loss.gamma": Key(5.0, "min_snr: the largest SNR that counts", POSITIVE),
    "loss.k": Key(1.0, "p2: added to the SNR", POSITIVE),
    "loss.power": Key(1.0, "p2: of their sum, by which it divides", NOT_NEGATIVE),
    "loss.bias": Key(0.0, "sigmoid: the log-SNR of half its weight", FINITE),
    "times.name": Key("uniform", "distribution of training times", TIMES),
    "times.t_min": Key(0.0, "but for log_normal, in continuous time: the lower end; 0: the process's own", NOT_NEGATIVE),
    "times.mean": Key(-1.2, "log_normal: mean of log(sigma / alpha)", FINITE),
    "times.std": Key(1.2, "log_normal: its standard deviation", POSITIVE),
    "times.location": Key(0.0, "logit_normal: mean of the logit of t", FINITE),
    "times.scale": Key(1.0, "logit_normal: its standard deviation", POSITIVE),
    "times.kept": Key(10, "importance: losses remembered for each time", POSITIVE),
    "times.uniform_share": Key(0.001, "importance: share of times that are uniform", UNIT),
    "optim.name": Key("adam", "the optimizer", OPTIMIZERS),
    "optim.learning_rate": Key(2e-4, "after the warm-up", POSITIVE),
    "optim.warmup_steps": Key(5000, "steps of linear warm-up from 0", NOT_NEGATIVE),
    "optim.b1": Key(0.9, "decay of Adam's first moment", BELOW_ONE),
    "optim.b2": Key(0.999, "decay of Adam's second moment", BELOW_ONE),
    "optim.eps": Key(1e-8, "Adam's epsilon", POSITIVE),
    "optim.clip_norm": Key(1.0, "limit of the gradients' global norm; 0: no clipping", NOT_NEGATIVE),
    "ema.decays": Key((0.9999,), "of the averages of the parameters; each starts as (1 + step) / (10 + step)", BELOW_ONE),
    "train.steps": Key(800_000, "training steps in all", POSITIVE),
    "train.batch_size": Key(128, "images per step, over all devices", POSITIVE),
    "train.micro_batches": Key(1, "parts of a device's share of the batch that follow one another, to save memory", POSITIVE),
    "train.on_nonfinite": Key("stop", "at a loss or gradient that is not finite: stop, or skip that update", ("stop", "skip")),
    "train.max_skips": Key(10, "updates skipped in a row at which training stops after all", POSITIVE),
    "train.debug_nans": Key(False, "find the operation that gives the first NaN; slow"),
    "train.steps_per_call": Key(0, "steps per compiled call; 0: 1 on CPU, up to 10 elsewhere", NOT_NEGATIVE),
    "train.log_every": Key(100, "steps between log lines", POSITIVE),
    "train.sample_every": Key(10_000, "steps between sample grids; 0: none before the end", NOT_NEGATIVE),
    "train.checkpoint_every": Key(10_000, "steps between checkpoints", POSITIVE),
    "train.keep_last": Key(2, "newest checkpoints kept", POSITIVE),
    "train.keep_every": Key(0, "checkpoints at multiples of this step are kept for good; 0: none", NOT_NEGATIVE),
    "sampler.checkpoint": Key(0, "--mode=sample, eval: the step of the checkpoint that is used; 0: the newest", NOT_NEGATIVE),
    "sampler.ema": Key(0, "which of ema.decays averages the parameters it uses, counted from 0", NOT_NEGATIVE),
    "sampler.name": Key("ancestral", "the sampler", SAMPLERS),
    "sampler.steps": Key(1000, "points of the time grid, the first at the noise end", POSITIVE),
    "sampler.grid": Key("uniform", "how they are spaced", GRIDS),
    "sampler.t_min": Key(0.0, "the last of them in continuous time; 0: the process's own", NOT_NEGATIVE),
    "sampler.sections": Key("10,10,15,15,15", "sections: their counts per section of the chain, or ddim50"),
    "sampler.rho": Key(7.0, "karras: sigma^(1/rho) is evenly spaced", POSITIVE),
    "sampler.times": Key((1.0,), "explicit: the times themselves", NOT_NEGATIVE),
    "sampler.variance": Key("large", "ancestral: variance of the reverse step; a learned one where the run has it", VARIANCES),
    "sampler.eta": Key(0.0, "ddim: share of fresh noise", FRACTION),
    "sampler.s_churn": Key(0.0, "euler, heun: noise added anew, over all steps (Karras et al. 2022); 0: none", NOT_NEGATIVE),
    "sampler.s_min": Key(0.0, "euler, heun: least sigma / alpha at which it is added", NOT_NEGATIVE),
    "sampler.s_max": Key(1e9, "euler, heun: greatest", POSITIVE),
    "sampler.s_noise": Key(1.0, "euler, heun: its standard deviation", POSITIVE),
    "sampler.predictor": Key("reverse_diffusion", "predictor_corrector: the sampler that is corrected", PREDICTORS),
    "sampler.corrector_steps": Key(1, "predictor_corrector: Langevin steps before each of its steps", POSITIVE),
    "sampler.snr": Key(0.16, "predictor_corrector: their size, as a share of noise to score", POSITIVE),
    "sampler.norms": Key("sample", "predictor_corrector: norms of each sample, or their mean over the batch", NORMS),
    "sampler.langevin_steps": Key(5, "annealed_langevin: steps per level", POSITIVE),
    "sampler.rate": Key(0.062, "annealed_langevin: their size in units of the noise's variance", POSITIVE),
    "sampler.order": Key(2, "unipc, deis: 1, 2 or 3", (lambda value: value in (1, 2, 3), "of 1, 2, 3")),
    "sampler.corrector": Key(True, "unipc: whether the next prediction corrects a step"),
    "sampler.published": Key(False, "dpmpp_3m, deis: as in the published code, of order 2"),
    "sampler.rtol": Key(1e-5, "adaptive_ode: relative tolerance", POSITIVE),
    "sampler.atol": Key(1e-5, "adaptive_ode: absolute tolerance", POSITIVE),
    "sampler.max_evaluations": Key(10_000, "adaptive_ode: per transition", (lambda value: 7 <= value < 2**31, "at least 7")),
    "sampler.last": Key("denoise", "what is returned at the end of the grid", LASTS),
    "sampler.clip": Key("rederive", "clipping of x0 to [-1, 1]; eps derived from it again, kept, or no clipping", CLIPS),
    "sampler.labels": Key((), "with cond.labels: of the samples, in turn; (): every class", NOT_NEGATIVE),
    "sampler.num_samples": Key(64, "images", POSITIVE),
    "sampler.batch_size": Key(64, "images sampled at once, at most", POSITIVE),
    "sampler.frames": Key(24, "frames of the animation from noise to samples; 0 or 1: none", NOT_NEGATIVE),
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
    "inpaint.resamplings": Key(10, "repaint: how often each step is made", POSITIVE),
    "inpaint.zeta": Key(1.0, "dps: length of its steps along the gradient", POSITIVE),
    "inpaint.iterations": Key(5, "tmpd: of conjugate gradients in each call of the denoiser", POSITIVE),
    "eval.bpd": Key(False, "bits per dimension, by the probability-flow ODE and by the variational bound"),
    "eval.split": Key("test", "the part of the data that is evaluated"),
    "eval.num_examples": Key(0, "its first examples, so many; 0: all", NOT_NEGATIVE),
    "eval.batch_size": Key(64, "examples evaluated at once, at most", POSITIVE),
    "eval.seed": Key(0, "of dequantisation, probes and the bound's noise", SEED),
    "eval.solver": Key("dopri5", "of the ODE: dopri5 is adaptive", SOLVERS),
    "eval.steps": Key(100, "heun, rk4: points of the time grid, both ends among them", FROM_TWO),
    "eval.grid": Key("log_snr", "heun, rk4: how they are spaced", FROM_END_TO_END),
    "eval.rtol": Key(1e-5, "dopri5: tolerated error, relative", POSITIVE),
    "eval.atol": Key(1e-5, "dopri5: tolerated error, absolute", POSITIVE),
    "eval.probe": Key("rademacher", "of the divergence; exact: its trace, for data of few dimensions", PROBES),
    "eval.probes": Key(1, "rademacher, gaussian: how many per example", POSITIVE),
    "eval.bound_steps": Key(1000, "steps of the bound's chain in continuous time; a table has its own", FROM_TWO),
    "eval.bound_terms": Key(0, "transitions evaluated, one in each of so many equal parts of the chain; 0: all", NOT_NEGATIVE),
    "eval.variance": Key("auto", "of the bound's reverse steps; auto: a learned one, else large", ("auto", *VARIANCES)),
}

# What may differ between a run directory and the command that continues it: nothing that has entered the parameters, but for
# rounding. Like the number of devices, micro_batches changes the order of sums, and is what a smaller device must change.
CHANGEABLE = (
    "data.data_dir", "data.raw_dir", "data.path", "data.memory_limit_mb", "sampler.", "guidance.", "inpaint.", "eval.",
    "train.steps", "train.steps_per_call", "train.log_every", "train.sample_every", "train.checkpoint_every",
    "train.keep_last", "train.keep_every", "train.micro_batches", "train.on_nonfinite", "train.max_skips", "train.debug_nans",
)  # fmt: skip

# Directories of other runs that guide the samples of this one. They are taken from the command, never from a run directory.
GUIDES = ("guidance.weak", "guidance.classifier")
# What is of one command: a run directory does not lead to these files, nor back to this checkpoint.
OF_THE_COMMAND = ("inpaint.images", "inpaint.mask", "sampler.checkpoint")

NEVER_EMPTY = {"network.multipliers": "level", "ema.decays": "decay (0.0: the parameters of the last step)"}


def base() -> ConfigDict:
    """Every key with its default: the CIFAR-10 settings of Ho et al. 2020 but for the data."""
    return unflatten({key: entry.default for key, entry in KEYS.items()})


def unflatten(flat: dict[str, Any]) -> ConfigDict:
    """{"a.b": value} as a ConfigDict of sections. Lists (of JSON) become tuples."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[leaf] = tuple(value) if isinstance(value, list) else value
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
    for other, (_, _, table) in KEYS.items():
        if other.startswith(section + ".") and isinstance(table, dict) and any(takes(made, leaf) for made in table.values()):
            return other
    return ""


def applies(key: str, config: ConfigDict) -> bool:
    """False where another choice in the key's section takes the key, but the one chosen does not."""
    by = chooser(key)
    return not by or takes(KEYS[by].accepts[flatten(config)[by]], key.partition(".")[2])


def check_applies(key: str, config: ConfigDict) -> None:
    """Raises UserError for a key that the choice made in its section does not take."""
    if not applies(key, config):
        raise UserError(f"config.{key} does not apply to {chooser(key)}={flatten(config)[chooser(key)]}: leave it out.")


def validate(config: ConfigDict) -> None:
    """Raises UserError for an unknown key, a missing key, a value that is not accepted, or values that do not go together."""
    check_complete(config)
    for key, value in flatten(config).items():
        check_value(key, value)
    try:
        kernel(config)
    except ValueError as error:
        keys = "process.name process.steps prediction.name loss.name times.name sampler.name sampler.grid sampler.steps"
        flat = flatten(config)
        settings = ", ".join(f"config.{key}={flat[key]}" for key in keys.split())
        raise UserError(f"These settings do not go together: {settings}. The reason: {error}.") from error
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
    default, _, accepts = KEYS[key]
    found = value if found is None else found
    wrong = UserError(f"config.{key} takes {kind(key)}, found {found!r}.{_suggestion(value, accepts)}")
    if type(value) is not type(default):
        raise wrong
    elements = value if isinstance(default, tuple) else (value,)
    for element in elements:
        if type(element) is not _element_type(default) or (accepts is not None and not _accepted(element, accepts)):
            raise wrong
    if key in NEVER_EMPTY and not value:
        raise UserError(f"config.{key} needs at least one {NEVER_EMPTY[key]}, found ().")


def _element_type(default) -> type:
    """Of the elements of a tuple, which are ints where the default is empty; or of the default itself."""
    return type((*default, 0)[0]) if isinstance(default, tuple) else type(default)


def _is_rule(accepts) -> bool:
    return isinstance(accepts, tuple) and callable(accepts[0])


def _accepted(value, accepts) -> bool:
    return accepts[0](value) if _is_rule(accepts) else value in accepts


def _suggestion(value, accepts) -> str:
    if accepts is None or _is_rule(accepts) or not isinstance(value, str):
        return ""
    near = nearest(value, accepts)
    return f" Did you mean {near[0]}?" if near else ""


def kind(key: str) -> str:
    """The type and accepted values of a key, in words."""
    default, _, accepts = KEYS[key]
    if isinstance(default, tuple):
        words = f"a tuple of {_element_type(default).__name__}s, as 1,2 or (1,2)"
        return words + (f", each {accepts[1]}" if accepts else "")
    words = {int: "an int", float: "a float", bool: "true or false", str: "a string"}[type(default)]
    if accepts is None:
        return words
    return f"{words} {accepts[1]}" if _is_rule(accepts) else "one of " + ", ".join(accepts)


def nearest(word: str, words: Iterable[str]) -> list[str]:
    """The one of the words that is most like this one, or none."""
    return difflib.get_close_matches(word.lower(), list(words), 1, cutoff=0.75)


def like(key: str) -> list[str]:
    """The keys that a mistyped key may mean: those of that name in any section, else the nearest."""
    leaf = key.rpartition(".")[2]
    elsewhere = [known for known in KEYS if known.rpartition(".")[2] == leaf]
    return elsewhere or nearest(key, KEYS)


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


def fixed(config: ConfigDict) -> dict[str, Any]:
    """{"a.b": value} of the keys that may not change when a run is continued."""
    kept = [key for key in KEYS if not any(key == c or (c.endswith(".") and key.startswith(c)) for c in CHANGEABLE)]
    return {key: value for key, value in flatten(config).items() if key in kept}


def differences(saved: ConfigDict, given: ConfigDict) -> list[str]:
    """The keys in which two configs differ and that may not change when a run is continued, as "key: saved -> given"."""
    saved, given = fixed(saved), fixed(given)
    return [f"{key}: {saved[key]!r} -> {given[key]!r}" for key in KEYS if key in saved and saved[key] != given[key]]
