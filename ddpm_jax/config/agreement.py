"""What may differ between a run and the command that continues it."""

from typing import Any

from ml_collections import ConfigDict

from ddpm_jax.config.idle import applies
from ddpm_jax.config.keys import KEYS
from ddpm_jax.config.values import acting
from ddpm_jax.tasks.choices import choose

# What may differ between a run directory and the command that continues it: nothing that has entered the parameters, but for
# rounding. Like the number of devices, micro_batches changes the order of sums, and is what a smaller device must change.
CHANGEABLE = (
    "ema.snapshot_every",
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
OF_THE_COMMAND = ("inpaint.images", "inpaint.mask", "sampler.checkpoint", "sampler.ema_width", "train.allow_changes")


def changes(saved: ConfigDict, given: ConfigDict) -> dict[str, list]:
    """{key: [saved, given]} of the keys in which two configs differ and that may not change when a run is continued."""
    saved, given = fixed(saved), fixed(given)
    return {key: [saved[key], given[key]] for key in saved if key in given and saved[key] != given[key]}


def differences(saved: ConfigDict, given: ConfigDict) -> list[str]:
    """`changes` as "key: saved -> given", without those that `given` makes on purpose."""
    found = changes(saved, given)
    if given.train.allow_changes:
        same_outputs = choose(saved).loss.learns == choose(given).loss.learns  # of the network
        never = NEVER_CHANGED if same_outputs else (*NEVER_CHANGED, "loss.name", "loss.variance")
        found = {key: pair for key, pair in found.items() if key in never or not key.startswith(ON_PURPOSE)}
    return [f"{key}: {before!r} -> {after!r}" for key, (before, after) in found.items()]


def fixed(config: ConfigDict) -> dict[str, Any]:
    """The keys that may not change when a run is continued, but for those that do nothing, with the values that act.

    train.steps is one where the learning rates depend on it.
    """
    keys = [key for key in KEYS if not any(key == c or (c.endswith(".") and key.startswith(c)) for c in CHANGEABLE)]
    if applies("optim.schedule_steps", config) and not config.optim.schedule_steps:
        keys.append("train.steps")
    return {key: acting(key, config) for key in keys if applies(key, config)}
