"""Checkpoints: written by orbax in the background, each leaf with its SHA-256, restored into NumPy."""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from ddpm_jax import files
from ddpm_jax.errors import UserError, first_line, remedy, tell_machine
from ddpm_jax.runs import stores
from ddpm_jax.terminal import say

FORMAT = 2
SUMS = "SHA256SUMS"  # in each checkpoint: of its files, as `sha256sum -c SHA256SUMS` reads them
UNSUMMED = (SUMS, "_CHECKPOINT_METADATA", "commit_success.txt")  # orbax writes these last, and what they say is not used


class Damaged(Exception):
    """A checkpoint whose content is not what was saved."""


def open_manager(directory: Path, keep_last: int = 1, keep_every: int = 0, *, read_only: bool = False) -> ocp.CheckpointManager:
    """The checkpoints of a run: the last `keep_last` are kept, and those at multiples of `keep_every` (0: none) for good.

    Raises UserError for a path that tensorstore, which reads and writes them, cannot be told, and for links and pipes in the
    checkpoints' folders, where orbax reads files at once.
    """
    files.check_real(directory)
    try:
        str(directory.absolute()).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{directory} cannot hold checkpoints, since Python cannot read its path as UTF-8. Set LC_ALL=C.UTF-8 and leave "
            "PYTHONUTF8 unset, or give a --workdir without such letters."
        ) from error
    settings = {"read_only": True}
    if not read_only:
        settings = {
            "max_to_keep": keep_last,
            "keep_period": keep_every or None,
            "cleanup_tmp_directories": True,
            "async_options": ocp.options.AsyncOptions(post_finalization_callback=lambda: _write_sums(directory)),
        }
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # orbax warns of what it makes of read_only=True
    try:
        return ocp.CheckpointManager(directory.absolute(), options=ocp.CheckpointManagerOptions(**settings))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # of _CHECKPOINT_METADATA
        reason = first_line(error)
        raise UserError(f"None of the checkpoints in {directory} can be read ({reason}): give another --workdir.") from error
    finally:
        logging.set_verbosity(verbosity)


def steps(directory: Path) -> list[int]:
    """Of the checkpoints in a folder, damaged ones among them, by their names."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def save(manager: ocp.CheckpointManager, step: int, state: Any, meta: dict) -> None:
    """Starts saving a pytree of arrays and JSON-able notes; returns before the files are written.

    Raises ValueError, naming the leaf, where a float is not finite: nothing non-finite reaches the disk. Raises UserError where
    the checkpoint before could not be written.
    """
    leaves = _flatten(jax.device_get(state))
    for name, leaf in leaves.items():
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            raise ValueError(f"{name} is not finite at step {step}")
    # As text at once: orbax reads the notes in the background, while the caller's meta changes.
    text = json.dumps({"format": FORMAT, "sha256": {name: _digest(leaf) for name, leaf in leaves.items()}, "meta": meta})
    notes = {"notes": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(leaves), notes=ocp.args.JsonSave(notes))
    with _writing(manager):
        manager.save(step, args=args, force=True)


def check(manager: ocp.CheckpointManager) -> None:
    """Raises UserError where a checkpoint could not be written in the background."""
    with _writing(manager):
        manager.check_for_errors()


def finish(manager: ocp.CheckpointManager) -> None:
    """Returns when the checkpoint under way is written. Raises UserError where it could not be."""
    with _writing(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # tensorstore tells a full disk by ValueError, other parts by OSError
        tell_machine(error)
        kept = max(manager.all_steps(), default=None)
        raise UserError(
            f"A checkpoint could not be written to {manager.directory} ({first_line(error)}). "
            + (f"The one of step {kept} is sound. " if kept is not None else "There is none before it. ")
            + f"{remedy(error)}, then start the same command again: training continues from the last checkpoint."
        ) from error


def restore_latest(
    manager: ocp.CheckpointManager,
    target: Any,
    *,
    agree: Callable[[int, dict], None] = lambda step, meta: None,  # noqa: ARG005
    report: Callable[[str], None] = say,
    set_aside: bool = False,
) -> tuple[int, Any, dict] | None:
    """(step, state of NumPy arrays, meta) of the newest sound checkpoint; None where there is none at all.

    target: a pytree of arrays or shapes, as `jax.eval_shape` gives. agree(step, meta): called before the arrays are read,
    raises UserError for a checkpoint that is not what the caller means. A damaged checkpoint is reported and the one before it
    is used; `set_aside` then moves it to the folder damaged/ beside the checkpoints, so that its step can be saved again.
    Raises UserError where all are damaged (none is moved) or were written for another state.
    """
    steps = sorted(manager.all_steps(), reverse=True)
    damaged = []
    for step in steps:
        try:
            state, meta = _restore(manager, step, target, agree)
        except Damaged as error:
            if not _folder(manager, step).exists():  # deleted meanwhile by the process that trains
                continue
            report(f"The checkpoint of step {step} is damaged ({error}); trying the one before it.")
            damaged.append(step)
            continue
        if set_aside and damaged:
            _move_aside(Path(manager.directory), damaged)
            manager.reload()
        return step, state, meta
    manager.reload()
    if set(manager.all_steps()) - set(steps):  # the process that trains has written others
        return restore_latest(manager, target, agree=agree, report=report, set_aside=set_aside)
    if steps:
        raise UserError(
            f"None of the checkpoints in {manager.directory} (steps {', '.join(map(str, sorted(steps)))}) can be read: "
            "see above for each. Start again with another --workdir, or remove this one."
        )
    return None


def restore_step(manager: ocp.CheckpointManager, target: Any, step: int, *, agree: Callable[[int, dict], None]):
    """As `restore_latest`, of the checkpoint of this step. Raises UserError where there is none, and where it is damaged."""
    steps = sorted(manager.all_steps())
    if step not in steps:
        there = f"those there are of steps {', '.join(map(str, steps))}" if steps else "there is none yet"
        raise UserError(f"There is no checkpoint of step {step} in {manager.directory}: {there}.")
    try:
        return step, *_restore(manager, step, target, agree)
    except Damaged as error:
        others = ", ".join(str(other) for other in steps if other != step)
        raise UserError(
            f"The checkpoint of step {step} in {manager.directory} is damaged ({error}): take another"
            + (f", of step {others}." if others else ", but there is none.")
        ) from error


def _folder(manager: ocp.CheckpointManager, step: int) -> Path:
    return Path(manager.directory) / str(step)


def _write_sums(directory: Path) -> None:
    """Into the checkpoint that is being written, before it gets its name."""
    for folder in directory.glob("*.orbax-checkpoint-tmp*"):
        files.write_text(folder / SUMS, _sums(folder))


def _check_files(folder: Path) -> None:
    """Raises Damaged where a file is missing, cut short or changed, and for links and pipes, which could lead anywhere.

    Comes before any other code reads them, which may trust a length that it finds. Checkpoints of before have no sums.
    """
    try:
        if folder.is_symlink():
            raise Damaged("it is a link")
        for path in folder.rglob("*"):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise Damaged(f"{path.relative_to(folder)} is a link or no file")
        if not (folder / SUMS).exists():
            return
        wanted, found = files.read_text(folder / SUMS), _sums(folder)
    except (files.Unreadable, OSError) as error:
        raise Damaged(f"its files cannot be read: {first_line(error)}") from error
    if wanted != found:
        odd = sorted({*wanted.splitlines()} ^ {*found.splitlines()}, key=lambda line: line[64:])
        raise Damaged(f"the checksum of {odd[0][66:] if odd else SUMS} does not match")


def _sums(folder: Path) -> str:
    """A line of each file, "<SHA-256>  <path>"."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and str(path.relative_to(folder)) not in UNSUMMED:
            with files.open_existing(path) as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n")
    return "".join(lines)


def _move_aside(folder, steps):
    for step in steps:
        destination = files.folder(folder.parent, "damaged") / str(step)
        shutil.rmtree(destination, ignore_errors=True)
        shutil.move(folder / str(step), destination)


def _restore(manager, step, target, agree):
    _check_files(_folder(manager, step))
    try:
        stored = files.read_json(_folder(manager, step) / "notes" / "metadata")  # where orbax's JsonSave writes
        text = stored["notes"]
        found, digest = hashlib.sha256(text.encode()).hexdigest(), stored["sha256"]
    except files.Unreadable as error:
        raise Damaged(f"its notes cannot be read: {error.reason}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"its notes cannot be read: {first_line(error)}") from error
    if found != digest:
        raise Damaged("the checksum of its notes does not match")
    try:
        notes = files.parse_json(text)
        version, digests, meta = notes["format"], {**notes["sha256"]}, {**notes["meta"]}
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"its notes are not of this code: {first_line(error)}") from error
    if version not in range(1, FORMAT + 1):
        raise UserError(
            f"The checkpoint of step {step} in {manager.directory} has format {version}; this code reads formats up to "
            f"{FORMAT}. Use the code that wrote it."
        )
    agree(step, meta)
    wanted = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in _flatten(target).items()}
    if version == 1:  # it knew one average of the parameters, and stopped where an update would be skipped today
        wanted = {re.sub(r"^ema\.0\b", "ema", name): leaf for name, leaf in wanted.items()}
        meta |= {"skipped": 0, "skipped_in_a_row": 0}
    if set(digests) != set(wanted):
        odd = sorted(set(digests) ^ set(wanted))[0]
        raise UserError(
            f"The checkpoint of step {step} in {manager.directory} was written for another network or optimizer: "
            f"{odd} is {'missing from it' if odd in wanted else 'unknown to this config'}. Use the code and config of that run."
        )
    _check_heads(_folder(manager, step), wanted)
    restore_args = ocp.args.PyTreeRestore(
        item=wanted, restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in wanted}
    )
    try:
        leaves = manager.restore(step, args=ocp.args.Composite(state=restore_args))["state"]
    except Exception as error:
        tell_machine(error)
        raise Damaged(f"its arrays cannot be read: {first_line(error)}") from error
    for name, leaf in leaves.items():
        if _digest(leaf) != digests[name]:
            raise Damaged(f"the checksum of {name} does not match")
    return jax.tree.unflatten(jax.tree.structure(target), [leaves[name] for name in wanted]), meta


def _check_heads(folder, wanted):
    """Raises UserError where the arrays are declared to have other shapes or dtypes than wanted, before any of them is read.

    A few bytes can declare, or unpack to, more than any memory holds. They are read in chunks, whose shapes are declared too.
    """
    try:
        stores.check(folder / "state")
        heads = ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree
        declared = {name: (heads[name].dtype, heads[name].shape) for name in wanted}
        chunks = {name: heads[name].storage.chunk_shape for name in wanted}
    except Exception as error:  # orbax raises many kinds for a damaged file
        tell_machine(error)
        raise Damaged(f"its arrays cannot be read: {first_line(error)}") from error
    for name, leaf in wanted.items():
        dtype, shape = declared[name]
        if (dtype, shape) != (leaf.dtype, leaf.shape):
            raise UserError(
                f"{name} in the checkpoint of step {folder.name} is {dtype}{list(shape)}, "
                f"but this config makes it {leaf.dtype}{list(leaf.shape)}. Use the code and config of that run."
            )
        if any(chunk > max(size, 1) for chunk, size in zip(chunks[name], leaf.shape, strict=True)):
            raise Damaged(f"{name} is stored in chunks of {list(chunks[name])}")


def _flatten(tree):
    """{path: leaf}, in the tree's order, so that what is on disk does not depend on container types."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def digest(tree: Any) -> str:
    """The SHA-256 of the names and arrays of a pytree."""
    lines = [f"{name} {_digest(leaf)}\n" for name, leaf in _flatten(tree).items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(leaf: np.ndarray) -> str:
    leaf = np.asarray(leaf)
    return hashlib.sha256(f"{leaf.dtype}{leaf.shape}".encode() + np.ascontiguousarray(leaf).tobytes()).hexdigest()
