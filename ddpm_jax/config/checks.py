"""The validator of configs."""

from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax.config.hints import suggestion, unknown_key
from ddpm_jax.config.idle import applies
from ddpm_jax.config.keys import KEYS
from ddpm_jax.config.values import acting, flatten, is_default
from ddpm_jax.construct import AUTO, construct
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.errors import UserError, tell_machine
from ddpm_jax.tasks.choices import choose


def validate(config: ConfigDict) -> None:
    """Raises UserError for what `check` finds, and for choices of the kernel that do not go together."""
    check(config)
    jax.local_devices()  # where there is none `explain` knows this error; one from inside an operation has lost its traceback
    try:
        choose(config)
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
    if len(set(config.ema.widths)) < len(config.ema.widths):
        raise UserError(f"config.ema.widths is {config.ema.widths}: give each width once.")
    kept = [*config.ema.decays, *(f"the width {width}" for width in config.ema.widths)]
    if config.sampler.ema >= len(kept):
        raise UserError(
            f"config.sampler.ema is {config.sampler.ema}, but the run has {len(kept)} averages: take "
            + ", ".join(f"{i} for {average}" for i, average in enumerate(kept))
            + "."
        )
    if config.sampler.ema_width and not config.ema.widths:
        raise UserError(
            f"config.sampler.ema_width={config.sampler.ema_width} is made of averages of config.ema.widths, and this run has "
            "none: leave it out, or train a run with --config.ema.widths=0.05,0.1 and --config.ema.snapshot_every=<steps>."
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


LARGEST_LOG = 20.0  # of what a process shows the network as a logarithm


def check_new(config: ConfigDict) -> None:
    """Raises UserError for what a new run is not to begin with, though it computes: runs of before that have it are read."""
    process = construct(PROCESSES, config.process)
    shown = abs(float(process.time_input(process.t_max)))
    if config.network.time_embedding == "fourier" and shown > LARGEST_LOG:
        raise UserError(
            f"config.network.time_embedding=fourier is of log sigma, and config.process.name={config.process.name} shows the "
            f"network a time of up to {shown:.4g}, of which random frequencies make noise: leave it out, or take ve or edm."
        )
    if config.sampler.name == "adaptive_ode" and applies("sampler.name", config) and process.num_steps:
        raise UserError(
            f"config.sampler.name=adaptive_ode stops at any time, and config.process.name={config.process.name} teaches the "
            f"network its {process.num_steps} steps alone: take dpmpp_2m, or a process in continuous time as vp."
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
    entry = KEYS[key]
    if isinstance(value, str) and value == entry.default == AUTO:
        return
    found = value if found is None else found
    wrong = UserError(f"config.{key} takes {entry.kind()}, found {found!r}.{suggestion(key, value)}")
    if type(value) is not entry.type:
        raise wrong
    least, most, one, several = entry.length
    if entry.type is tuple and len(value) > most:
        raise UserError(f"config.{key} takes at most {most} {several}, found {len(value)}.")
    for element in value if entry.type is tuple else (value,):
        word = entry.words and type(element) is str
        if not (word or type(element) is entry.element) or not entry.accepted(element):
            raise wrong
    if entry.type is tuple and len(value) < least:
        raise UserError(f"config.{key} needs at least one {one}, found ().")
