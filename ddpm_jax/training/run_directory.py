"""A run directory is complete: all that sampling or continuing the run needs lies in it.

config.json        format, the whole config, the shape of the images, versions of the packages
metrics.jsonl      one JSON object per logged step
checkpoints/       orbax, one folder per step
samples/           grids drawn during training, and what --mode=sample wrote
"""

import importlib.metadata
import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax.errors import UserError

FORMAT = 2
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "ml_collections", "tensorflow-datasets", "numpy")


def _several_averages(saved):
    """Format 1 knew one average of the parameters."""
    return {key: value for key, value in saved.items() if key != "ema.decay"} | {"ema.decays": (saved["ema.decay"],)}


MIGRATIONS = {1: _several_averages}  # by format: a flat config of it -> one of the next format


def exists(workdir: Path) -> bool:
    return (workdir / "config.json").is_file()


def read(workdir: Path) -> tuple[ConfigDict, tuple[int, int, int]]:
    """The run's config, laid over today's defaults, and its image shape. Raises UserError where there is no readable run."""
    path = workdir / "config.json"
    try:
        content = json.loads(path.read_text())
        version, saved, image_shape = content["format"], dict(content["config"]), tuple(content["image_shape"])
        while version in MIGRATIONS:
            saved, version = MIGRATIONS[version](saved), version + 1
    except FileNotFoundError:
        raise UserError(
            f"There is no run in {workdir} (no config.json). Train one with --config=configs/digits.py --workdir={workdir}, "
            "or give the --workdir of an existing run."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a run's config ({type(error).__name__}: {error}).") from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version}; this code reads formats up to {FORMAT}. Use the code that wrote it.")
    config = configs.unflatten(configs.flatten(configs.base()) | saved)
    try:
        configs.validate(config)
    except UserError as error:
        raise UserError(f"{path} holds a config that this code does not take: {error}") from error
    return config, image_shape


def write(workdir: Path, config: ConfigDict, image_shape: tuple[int, int, int]) -> None:
    """Creates the directory's folders and writes config.json, whole or not at all."""
    try:
        for folder in (workdir, workdir / "checkpoints", workdir / "samples"):
            folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "config": configs.flatten(config),
            "image_shape": list(image_shape),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        write_text(workdir / "config.json", json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"The run directory {workdir} cannot be written: {error}. Give another --workdir.") from error


def check_agreement(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError, naming the keys, where the config differs from the run's in what its parameters depend on."""
    differing = configs.differences(read(workdir)[0], config)
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config: {'; '.join(differing)} (there -> here). To continue that run leave "
            "these as they are there (or give --workdir without --config); for a new run give another --workdir."
        )


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
