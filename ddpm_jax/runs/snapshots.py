"""Power-function averages of the parameters as they were on the way, in the folder averages of a run directory.

Each file has those of one step, a width each. From them and the checkpoint's own follows that of any other width.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import files
from ddpm_jax.errors import UserError
from ddpm_jax.runs import checkpoints, weights
from ddpm_jax.terminal import say
from ddpm_jax.training import averages
from ddpm_jax.training.step import State

FOLDER = "averages"
NAME = re.compile(r"step_(\d{8,})" + re.escape(weights.ENDING))


def write(workdir: Path, config: ConfigDict, step: int, state: State) -> None:
    """Writes the averages of config.ema.widths in a state, whole or not at all. Raises UserError where they cannot be."""
    found = _numbered(jax.device_get(_of_widths(config, state)))
    about = {"step": str(step), "widths": json.dumps(config.ema.widths), "sha256": checkpoints.digest(found)}
    try:
        weights.write(files.folder(workdir, FOLDER) / f"step_{step:08}{weights.ENDING}", found, about)
    except OSError as error:
        raise UserError(
            f"The averages of step {step} cannot be written: {error}. Make room for them, then start the same command again: "
            "training continues from its last checkpoint."
        ) from error


def cut(workdir: Path, step: int) -> None:
    """Removes those past a step, which a run that continues from it makes again, or makes otherwise."""
    for path in _files(workdir, lambda there: there > step).values():
        path.unlink()


def average(workdir: Path, config: ConfigDict, state: State, width: float) -> Any:
    """The parameters that the average of this relative width would be at the state's step, see `averages.shares`.

    config.ema.widths: some, as `config.check` has it. Raises UserError for a run that kept none of before this step. A damaged
    file is told, and done without.
    """
    step, widths = int(state.step), config.ema.widths
    own = _numbered(_of_widths(config, state))
    kept = {there: path for there, path in _files(workdir, lambda there: 0 < there < step).items() if _read(path, own, widths)}
    if not kept and width not in widths:
        raise UserError(
            f"The run in {workdir} has no averages of before step {step}, and from those of one step alone that of the width "
            f"{width} does not follow: take one of {', '.join(map(str, widths))}, or train with --config.ema.snapshot_every."
        )
    steps = np.repeat([*kept, step], len(widths))
    shares = averages.shares(steps, np.tile(widths, len(kept) + 1), step, width).reshape(-1, len(widths))
    total = None
    for path, row in zip([*kept.values(), None], shares, strict=True):  # one file after the other, the sum in float64
        found = own if path is None else _read(path, own, widths)
        for number, share in enumerate(row):
            part = jax.tree.map(lambda leaf, share=share: share * np.float64(leaf), found[FOLDER][str(number)])
            total = part if total is None else jax.tree.map(np.add, total, part)
    return jax.tree.map(lambda leaf, like: np.asarray(leaf, np.asarray(like).dtype), total, own[FOLDER]["0"])


def _files(workdir, wanted):
    """{step: path} of the steps that are wanted, upwards."""
    found = {int(name[1]): path for path in (workdir / FOLDER).glob("*") if (name := NAME.fullmatch(path.name))}
    return {step: found[step] for step in sorted(found) if wanted(step)}


def _of_widths(config, state):
    return state.ema[len(config.ema.decays) :]


def _numbered(found):
    return {FOLDER: {str(number): params for number, params in enumerate(found)}}


def _read(path, like, widths):
    """What `write` wrote; None where it is damaged, which is told."""
    try:
        about = weights.about(path)
        if json.loads(about["widths"]) != list(widths):
            raise ValueError(f"it is of the widths {about['widths']}")
        found = weights.read(path, like)
        if checkpoints.digest(found) != about["sha256"]:
            raise ValueError("its checksum does not match")
        return found
    except (UserError, KeyError, ValueError, TypeError) as error:
        say(f"{path} is damaged, and the average is made without it: {error}")
        return None
