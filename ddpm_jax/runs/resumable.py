"""Training that a kill does not change: from the newest checkpoint of a run directory, with all that is kept there."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ddpm_jax import plots, signals
from ddpm_jax.data import Source, Streamed
from ddpm_jax.errors import UserError, first_line
from ddpm_jax.optimizers import optimizer_of
from ddpm_jax.runs import checkpoints, run_directory, sampling, snapshots
from ddpm_jax.runs import history as histories
from ddpm_jax.runs.logs import Log
from ddpm_jax.tasks.task import Task
from ddpm_jax.terminal import say
from ddpm_jax.training import loop
from ddpm_jax.training import metrics as metrics_of
from ddpm_jax.training.step import State, init_state, run_once


def train(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    source: Source | Streamed,
    devices: Sequence,
    *,
    held_out: Source | Streamed | None = None,
    params: Any = None,
    begin: Callable[[loop.Start, dict], list] = lambda start, notes: [],  # noqa: ARG005
) -> State:
    """Trains from the newest checkpoint in the run directory, or from the start, to config.train.steps. Returns the state.

    held_out: see `loop.train`. params: those that a new run starts from, instead of the task's; they are a checkpoint of step
    0. begin(start, notes), called with where it begins and the checkpoint's notes, {} where there is none, before anything is
    written: returns the run's `history`.

    The result does not depend on where the run was interrupted. Raises Diverged as `loop.train`; UserError where a checkpoint
    or the metrics cannot be written; and signals.Stopped, where the command line listens to signals, at the end of the step in
    which one came, with a checkpoint of that step.
    """
    c = config.train
    manager = checkpoints.open_manager(workdir / "checkpoints", c.keep_last, c.keep_every)
    target = state_shapes(config, task)
    run = config, source.image_shape, source.num_classes, source.identity
    restored = checkpoints.restore_latest(
        manager, target, agree=partial(run_directory.check_checkpoint, workdir, *run), set_aside=True
    )
    if restored is None:
        first = partial(_first_state, config, task)
        state, meta = run_once(first) if params is None else first(params), {}
        start = loop.Start(0, state._replace(frozen=task.frozen()), {}, {"skipped": 0, "skipped_in_a_row": 0})
    else:
        step, state, meta = restored
        try:
            start = loop.Start(step, state, *metrics_of.restored(meta))
            examples, _ = meta["num_examples"], histories.check(meta.get("history", []))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"The notes of the checkpoint of step {step} in {workdir} are not those of a training ({first_line(error)}): "
                "use the code that wrote it."
            ) from error
        if examples != source.num_examples:
            raise UserError(
                f"The run in {workdir} was trained on {examples} examples and the data now hold "
                f"{source.num_examples}: its batches would be others. Bring the same data back, or give another --workdir."
            )
    history = begin(start, meta)
    size = sum(leaf.size for leaf in jax.tree.leaves(target.params))
    say(f"{size:,} parameters; {len(devices)} x {devices[0].device_kind}; writing to {workdir}")
    parts = f"{len(devices)} x {c.micro_batches} x {c.batch_size // len(devices) // c.micro_batches}"
    say(
        f"batch size {c.batch_size} (devices x micro-batches x examples: {parts}), learning rate "
        f"{config.optim.learning_rate:g} after a warm-up of {config.optim.warmup_steps} steps"
        + ("" if config.optim.schedule == "constant" else f", then {config.optim.schedule}"),
    )
    if start.step >= c.steps:
        say(f"The run is complete: {start.step} steps. For more, raise --config.train.steps.")
        return start.state
    if start.step:
        say(f"continuing from step {start.step}")
    log = Log(workdir, start.step)
    snapshots.cut(workdir, start.step)
    preview = sampling.make_preview(task, config.sampler, devices) if task.course else None

    def save(now):
        log.sync()
        notes = {"pending": now.pending, "num_examples": source.num_examples, **now.skips}
        notes |= {"identity": run_directory.identity(*run), "history": history}
        checkpoints.save(manager, now.step, now.state, notes)

    def draw(step, params, frozen):
        """Draws a grid unless a signal comes first; then, as the file is missing, the run draws it when it continues."""
        shown = partial(plots.picture, kinds=task.condition.count, names=task.condition.names)
        grid = signals.unless_asked(lambda: shown(preview(params, frozen).x))
        if grid is not None:
            log.grid(step, grid)
            try:
                plots.save_png(grid_path(step), grid)
            except OSError as error:
                log.tell(error)

    def grid_path(step):
        return workdir / "samples" / f"training_{step:08}.png"

    finish = partial(checkpoints.finish, manager)
    keep = loop.Keep(
        save,
        finish,
        check=partial(checkpoints.check, manager),
        newest=manager.latest_step,
        scalars=log.scalars,
        snapshot=partial(snapshots.write, workdir, config),
        draw=draw if preview else None,
        drawn=lambda step: grid_path(step).exists(),
    )
    if restored is None and params is not None:
        save(start)
        finish()
    state = loop.train(config, task, source, devices, start, keep, held_out)
    manager.close()
    return state


def state_shapes(config: ConfigDict, task: Task) -> State:
    """The state of a run in shapes and dtypes: what its checkpoints hold."""
    return jax.eval_shape(partial(_first_state, config, task))._replace(frozen=jax.eval_shape(task.frozen))


def _first_state(config, task, params=None):
    """The state before the first step without frozen parameters; params: in place of the task's own."""
    averages = len(config.ema.decays) + len(config.ema.widths)
    return init_state(task, optimizer_of(config), config.seed, averages, params, addresses=config.addresses)
