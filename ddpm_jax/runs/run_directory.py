"""A run directory is complete: all that sampling or continuing the run needs lies in it.

config.json        format, the whole config, shape of the images, number of classes, which data they are, the random numbers'
                   implementation, versions of the packages; history: what commands and code trained it, what was changed
metrics.jsonl      one JSON object per logged step
lock               held while a process trains here; who it is
checkpoints/       orbax, one folder per step
samples/           grids drawn during training, and what --mode=sample wrote

A run directory from a stranger is data. Nothing in it is executed or unpickled, no path that it names is followed when it is
sampled from, nor any link, and what is wrong with it is an error. (Continuing its training does read the data that its config
names, and beginning it the run of train.init. A config *file*, --config=x.py, is a program and runs as one.)
"""

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ddpm_jax import config as configs
from ddpm_jax import files
from ddpm_jax.construct import AUTO
from ddpm_jax.data import Source, Streamed
from ddpm_jax.data import identity as data_identity
from ddpm_jax.diffusion.keys import IMPLEMENTATION, SHARED
from ddpm_jax.errors import UserError, first_line, remedy
from ddpm_jax.runs import checkpoints
from ddpm_jax.runs import history as histories
from ddpm_jax.terminal import say

FORMAT = 6


def _several_averages(content):
    """Format 1 knew one average of the parameters."""
    saved = {**content["config"]}
    return content | {"config": saved | {"ema.decays": (saved.pop("ema.decay"),)}}


def _number_of_classes(content):
    """Format 2 did not tell it."""
    return content | {"num_classes": 0}


def _data_and_own_defaults(content):
    """Format 3 did not tell which data they were, and wrote 0 where the constructor's own default was meant."""
    saved = {**content["config"]}
    meant = ("process.beta_start", "process.beta_end", "process.sigma_min", "process.sigma_max", "times.t_min", "sampler.t_min")
    return content | {"data": {}, "config": saved | {key: AUTO for key in meant if saved.get(key) == 0}}


def _shared_addresses(content):
    """Format 4 had random numbers whose addresses did not say their purpose."""
    return content | {"config": {**content["config"], "addresses": SHARED}}


def fixed_variances(settings):
    """Formats up to 5 called the fixed variances small and large."""
    of_variance = lambda key, value: key.rpartition(".")[2] == "variance" and value in ("small", "large")  # noqa: E731
    return {key: f"fixed_{value}" if of_variance(key, value) else value for key, value in settings.items()}


def _fixed_variances(content):
    return content | {"config": fixed_variances(content["config"])}


# By format: what config.json holds -> the same in the next format.
MIGRATIONS = {1: _several_averages, 2: _number_of_classes, 3: _data_and_own_defaults, 4: _shared_addresses, 5: _fixed_variances}


class Saved(NamedTuple):
    """What config.json tells: the config, laid over today's defaults; num_classes and data, 0 and {} where not known."""

    config: ConfigDict
    image_shape: tuple[int, ...]
    num_classes: int
    data: data_identity.Identity


def _migrated(content):
    """The same in the latest format that can be reached from its own, and that format."""
    version = content["format"]
    while version in [*MIGRATIONS]:  # not a lookup: a stranger's version may be a list
        content, version = MIGRATIONS[version](content), version + 1
    return content, version


def exists(workdir: Path) -> bool:
    return (workdir / "config.json").is_file()


def read(workdir: Path) -> Saved:
    """What a run's config.json tells. Raises UserError where there is no readable run."""
    path = workdir / "config.json"
    files.check_real(workdir)
    try:
        content, version = _migrated(files.read_json(path))
        saved, image_shape = {**content["config"]}, tuple(content["image_shape"])
        num_classes = content["num_classes"] if version == FORMAT else 0
        if any(saved.get(key) for key in configs.GUIDES):  # a path, without which the rest may make no sense
            saved = {key: value for key, value in saved.items() if not key.startswith(("guidance.", "sampler.labels"))}
        if not (len(image_shape) in (1, 3) and all(type(n) is int and 0 < n < 2**16 for n in image_shape)):
            raise ValueError(f"image_shape is {list(image_shape)}")
        if not (type(num_classes) is int and 0 <= num_classes < 2**31):
            raise ValueError(f"num_classes is {num_classes}")
        data = data_identity.check(content["data"], num_classes) if version == FORMAT else {}
    except files.Missing:
        raise UserError(
            f"There is no run in {workdir} (no config.json). Train one with --config=configs/digits.py --workdir={workdir}, "
            "or give the --workdir of an existing run."
        ) from None
    except (files.Unreadable, ValueError, KeyError, TypeError) as error:
        reason = error.reason if isinstance(error, files.Unreadable) else first_line(error)
        raise UserError(
            f"{path} cannot be read as a run's config ({reason}). Put a copy of it there, if you have one, or give another "
            "--workdir."
        ) from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version}; this code reads formats up to {FORMAT}. Use the code that wrote it.")
    try:
        for key in saved:
            if key not in configs.KEYS:
                raise configs.unknown_key(key)
        saved = {key: value for key, value in saved.items() if key not in configs.OF_THE_COMMAND}
        config = configs.unflatten(configs.flatten(configs.base()) | saved)
        configs.validate(config)
    except UserError as error:
        raise UserError(f"{path} holds a config that this code does not take: {error}") from error
    return Saved(config, image_shape, num_classes, data)


def write(
    workdir: Path,
    config: ConfigDict,
    image_shape: tuple[int, ...],
    num_classes: int = 0,
    data: data_identity.Identity | None = None,
    history: histories.History | None = None,
) -> None:
    """Creates the directory's folders and writes config.json, whole or not at all."""
    create(workdir)
    values = configs.flatten(config) | configs.fixed(config)
    try:
        content = {
            "format": FORMAT,
            "config": {key: value for key, value in values.items() if key not in configs.OF_THE_COMMAND},
            "image_shape": list(image_shape),
            "num_classes": num_classes,
            "random": IMPLEMENTATION,
            "data": data or {},
            "versions": {name: importlib.metadata.version(name) for name in histories.PACKAGES},
            "history": history or [],
        }
        files.write_json(workdir / "config.json", content)
    except OSError as error:
        raise _cannot_be_written(workdir, error) from error


def _cannot_be_written(workdir: Path, error: OSError) -> UserError:
    return UserError(f"The run directory {workdir} cannot be written: {error}. {remedy(error)}, or give another --workdir.")


def check_agreement(workdir: Path, config: ConfigDict) -> None:
    """Raises UserError, naming the keys, where the config differs from the run's in what its parameters depend on."""
    saved = read(workdir)[0]
    if differing := configs.differences(saved, config):
        on_purpose = configs.unflatten(configs.flatten(config) | {"train.allow_changes": True})
        can_be = not configs.differences(saved, on_purpose)
        raise UserError(
            f"{workdir} holds a run with another config: {'; '.join(differing)} (there -> here). To continue that run leave "
            "these as they are there (or give --workdir without --config); for a new run give another --workdir."
            + (" To change them on purpose add --config.train.allow_changes=true." if can_be else "")
        )


def check_new(workdir: Path) -> None:
    """Raises UserError where a run is to begin in a directory that holds checkpoints of another, whose config.json is gone."""
    if steps := checkpoints.steps(workdir / "checkpoints"):
        raise UserError(
            f"{workdir} holds checkpoints (of steps {', '.join(map(str, steps))}), but no config.json, which says of what run "
            "they are. Put that run's config.json back, or give another --workdir."
        )


def identity(
    config: ConfigDict, image_shape: tuple[int, ...], num_classes: int, data: data_identity.Identity | None = None
) -> dict[str, Any]:
    """What parameters are trained by and for: it goes into the notes of each checkpoint, see `check_checkpoint`.

    These are the keys and values themselves, not a digest of them. So an error can name what differs, a key that a later
    version adds gets its default in old checkpoints, as in an old config.json, and a key that it renames is migrated there too.
    Of what tells which data they are, which may be a list of all files, there are digests.
    """
    return {
        "format": FORMAT,
        "config": configs.fixed(config),
        "image_shape": list(image_shape),
        "num_classes": num_classes,
        "data": _digests(data or {}),
        "random": IMPLEMENTATION,
    }


def _digests(data):
    texts = {key: json.dumps(value, sort_keys=True) for key, value in data.items()}
    return {key: hashlib.sha256(text.encode()).hexdigest()[:16] for key, text in texts.items()}


def read_history(workdir: Path) -> histories.History:
    """That of config.json; [] where there is none. Raises UserError for what is no history."""
    path = workdir / "config.json"
    try:
        return histories.check(files.read_json(path).get("history", []))
    except files.Missing:
        return []
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as a run's config ({first_line(error)}). Put a copy of it there.") from error


def changes_of(workdir: Path, config: ConfigDict, meta: dict[str, Any]) -> dict[str, list]:
    """{key: [before, now]} of the fixed keys: from the notes of the checkpoint that is continued to this config.

    Of a checkpoint of before, without an identity, from config.json to it.
    """
    if "identity" not in meta:
        return configs.changes(read(workdir)[0], config) if exists(workdir) else {}
    saved, _ = _migrated(meta["identity"])
    return configs.changes(configs.unflatten(configs.flatten(configs.base()) | saved["config"]), config)


def create(workdir: Path) -> None:
    """Creates the directory's folders."""
    try:
        for name in ("checkpoints", "samples"):
            files.folder(workdir, name)
    except OSError as error:
        raise _cannot_be_written(workdir, error) from error


def check_checkpoint(
    workdir: Path,
    config: ConfigDict,
    image_shape: tuple[int, ...],
    num_classes: int,
    data: data_identity.Identity,
    step: int,
    meta: Any,
) -> None:
    """Raises UserError, naming what differs, where the checkpoint of `step` is of another run than this config's.

    meta: the checkpoint's notes. Those of before have no identity, and are taken as they are.
    """
    if "identity" not in meta:
        return
    try:
        saved, version = _migrated(meta["identity"])
        there = configs.unflatten(configs.flatten(configs.base()) | {**saved["config"]})
        past = histories.before(configs.flatten(config), read_history(workdir), step)  # what changed since was on purpose
        differing = configs.differences(there, configs.unflatten(past))
        told, known = {**saved.get("data", {})}, _digests(data)
        shapes, classes = [saved["image_shape"], list(image_shape)], {saved["num_classes"], num_classes}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"The notes of the checkpoint of step {step} in {workdir} do not say of what run it is ({first_line(error)}): use "
            "the code that wrote it."
        ) from error
    if version != FORMAT:
        raise UserError(
            f"The checkpoint of step {step} in {workdir} is of format {version}; this code reads formats up to {FORMAT}. Use "
            "the code that wrote it."
        )
    differing += [f"image_shape: {shapes[0]!r} -> {shapes[1]!r}"] * (shapes[0] != shapes[1])
    differing += [f"num_classes: {saved['num_classes']!r} -> {num_classes}"] * (len(classes - {0}) > 1)
    differing += [f"data.{key}: other than there" for key in told if key in known and told[key] != known[key]]
    if saved.get("random", IMPLEMENTATION) != IMPLEMENTATION:
        differing.append(f"random: {saved['random']!r} -> {IMPLEMENTATION!r}")
    if differing:
        raise UserError(
            f"The checkpoint of step {step} in {workdir} was trained with another config than the run has now: "
            f"{'; '.join(differing)} (in the checkpoint -> now). Where config.json was changed, set these back there; for "
            "another config give another --workdir."
        )


def check_data(workdir: Path, source: Source | Streamed, *, whole: bool = True) -> None:
    """Raises UserError where the data are not those of the run.

    whole: they must be those that it was trained on; otherwise another part of the same set, with the same classes, will do.
    A run of before, that does not know which data it has, is asked for the shape of images and the number of classes alone.
    """
    saved, keys = read(workdir), () if whole else data_identity.SET
    if source.image_shape != saved.image_shape:
        differ = f"has images of {list(saved.image_shape)} and the data are now {list(source.image_shape)}"
    elif saved.data and source.identity and (others := data_identity.differences(saved.data, source.identity, keys)):
        differ = f"was trained on other data: {'; '.join(others)} (there -> here)"
    elif saved.num_classes not in (0, source.num_classes):
        differ = f"has {saved.num_classes} classes and the data now {source.num_classes}"
    elif not saved.data and _numbered_anew(saved.config, source.class_names):
        raise UserError(
            f"The run in {workdir} is of a time when class folders were numbered in the order 1, 10, 2; now it is 1, 2, 10, "
            "and its labels would be those of other classes. To continue it, let the names of the folders begin with the "
            "labels that it knows, as 00_1, 01_10, 02_2; for a new run give another --workdir."
        )
    else:
        return
    raise UserError(f"The run in {workdir} {differ}. Bring the same data back, or give another --workdir.")


def _numbered_anew(config: ConfigDict, names: tuple[str, ...]) -> bool:
    """Whether labels that the run uses were those of other class folders in format 3."""
    used = config.cond.labels or config.task == "classifier"
    return used and config.data.name == "folder" and list(names) != sorted(names)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Within, no other process trains in the run directory. Raises UserError, naming the process, where one does already.

    The lock is the operating system's (flock): it ends with the process, however that ends.
    """
    try:
        files.folder(workdir)
        files.check_real(workdir)
        file = files.open_to_append(workdir / "lock")
    except OSError as error:
        raise _cannot_be_written(workdir, error) from error
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode("utf-8", "replace").strip() or "a process"
            raise UserError(
                f"{workdir} is in use: {holder} trains there. Wait for it or stop it, or give another --workdir. "
                "(--mode=sample may run beside it.)"
            ) from None
        except (OSError, ImportError) as error:
            say(f"no locks on this file system ({error}): let no other process train in {workdir}")
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        file.truncate(0)
        with contextlib.suppress(OSError):  # a full disk: held all the same
            file.write(f"process {os.getpid()} on {socket.gethostname()}, since {now},".encode())
            file.flush()
        files.clear_left_over(workdir / name for name in ("", "samples", "averages", "evaluations"))
        try:
            yield
        finally:
            file.truncate(0)
