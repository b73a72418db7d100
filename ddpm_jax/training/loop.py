"""The training loop: batch k, the step, metrics, checkpoints, sample grids, until the configured number of steps."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import plots, signals
from ddpm_jax.construct import construct
from ddpm_jax.data import Source, Streamed, batch_indices
from ddpm_jax.diffusion.keys import Purpose, words_of
from ddpm_jax.errors import Diverged, UserError, first_line
from ddpm_jax.terminal import say
from ddpm_jax.training import checkpoints, parallel, run_directory, sampling
from ddpm_jax.training import history as histories
from ddpm_jax.training import metrics as metrics_of
from ddpm_jax.training.debug import first_nonfinite
from ddpm_jax.training.feed import open_feed
from ddpm_jax.training.held_out import make_loss
from ddpm_jax.training.logs import Log
from ddpm_jax.training.optimizers import OPTIMIZERS, learning_rate_schedule
from ddpm_jax.training.progress import Progress, Stopwatch, duration
from ddpm_jax.training.step import State, init_state, make_step, run_once
from ddpm_jax.training.tasks import Task

EARLY = 10  # steps after which the time left is told for the first time


def train(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    source: Source | Streamed,
    devices: Sequence,
    *,
    held_out: Source | Streamed | None = None,
    params: Any = None,
    begin: Callable[[int, dict], list] = lambda step, notes: [],  # noqa: ARG005
) -> State:
    """Trains from the newest checkpoint in the run directory, or from the start, to config.train.steps. Returns the state.

    held_out: data whose mean loss, by the average that sampler.ema names, is logged as eval_loss every config.eval.loss_every
    steps. params: those that a new run starts from, instead of the task's; they are a checkpoint of step 0. begin(step, notes),
    called with the checkpoint's notes, {} where there is none, before anything is written: returns the run's `history`.

    The result does not depend on where the run was interrupted. Raises Diverged at a non-finite loss or gradient, or where
    config.train.on_nonfinite=skip has skipped as many updates in a row as config.train.max_skips; UserError where a checkpoint
    or the metrics cannot be written; and signals.Stopped, where the command line listens to signals, at the end of the step in
    which one came, with a checkpoint of that step.
    """
    c = config.train
    optimizer = construct(OPTIMIZERS, config.optim)
    learning_rate = learning_rate_schedule(config.optim.learning_rate, config.optim.warmup_steps)
    manager = checkpoints.open_manager(workdir / "checkpoints", c.keep_last, c.keep_every)

    def start(params=None):
        return init_state(task, optimizer, config.seed, len(config.ema.decays), params, addresses=config.addresses)

    target = jax.eval_shape(start)
    run = config, source.image_shape, source.num_classes, source.identity
    restored = checkpoints.restore_latest(
        manager, target, agree=partial(run_directory.check_checkpoint, workdir, *run), set_aside=True
    )
    if restored is None:
        step, pending, skips, meta = 0, {}, {"skipped": 0, "skipped_in_a_row": 0}, {}
        state = run_once(start) if params is None else start(params)
    else:
        step, state, meta = restored
        try:
            pending, skips = metrics_of.restored(meta)
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
    history = begin(step, meta)
    count = sum(leaf.size for leaf in jax.tree.leaves(target.params))
    say(f"{count:,} parameters; {len(devices)} x {devices[0].device_kind}; writing to {workdir}")
    parts = f"{len(devices)} x {c.micro_batches} x {c.batch_size // len(devices) // c.micro_batches}"
    say(
        f"batch size {c.batch_size} (devices x micro-batches x examples: {parts}), learning rate "
        f"{config.optim.learning_rate:g} after a warm-up of {config.optim.warmup_steps} steps",
    )
    if step >= c.steps:
        say(f"The run is complete: {step} steps. For more, raise --config.train.steps.")
        return state
    if step:
        say(f"continuing from step {step}")

    log = Log(workdir, step)
    per_call = steps_per_call(config, step, devices[0].platform)
    order = words_of(config.seed, Purpose.BATCHES, config.addresses)
    axes, calls = open_feed(
        source, lambda k: batch_indices(order, k, source.num_examples, c.batch_size), step, per_call, devices
    )
    one_device = make_step(
        task,
        optimizer,
        seed=config.seed,
        ema_decays=config.ema.decays,
        micro_batches=c.micro_batches,
        addresses=config.addresses,
    )
    donate = () if c.debug_nans else (0,)  # what is run again to find the operation
    run_step = parallel.over_devices(one_device, devices, in_axes=(None, *axes), out_axes=(None, None), donate=donate)
    state = parallel.replicate(state, devices)
    loss_of = make_loss(task, config, held_out, devices) if held_out else None
    draw = sampling.make_preview(task, config.sampler, devices) if task.course else None

    def diverged(problem):
        checkpoints.finish(manager)
        kept = manager.latest_step()
        others = [] if c.on_nonfinite == "skip" else ["continue with --config.train.on_nonfinite=skip"]
        others += [] if c.debug_nans else ["find the operation with --config.train.debug_nans=true"]
        return Diverged(
            f"Training diverged: {problem}. "
            + (f"The checkpoint of step {kept} stays. " if kept is not None else "No checkpoint was written before. ")
            + "; or ".join(["Try a lower --config.optim.learning_rate or a longer warm-up, in another --workdir", *others])
            + "."
        )

    def flush():
        """Brings the metrics of the steps since the last flush to the host. Raises Diverged where they end the run."""
        limit = c.max_skips if c.on_nonfinite == "skip" else 1
        if problem := metrics_of.collect(on_device, step, pending, skips, limit):
            in_a_row = f", and {limit} updates in a row were skipped (train.max_skips)" if c.on_nonfinite == "skip" else ""
            raise diverged(problem + in_a_row)

    def checked_step(state, *batch):
        new, metrics = run_step(state, *batch)
        if not all(np.isfinite(jax.device_get(metrics[name])).all() for name in metrics_of.CHECKED):
            on_one_device = parallel.on_one_device(one_device, (None, *axes), (None, None))
            operation = first_nonfinite(on_one_device, jax.device_get(state), *jax.device_get(batch))
            operation = operation or "no operation, when they are computed one by one"
            raise diverged(f"the first number that is not finite, after step {step}, comes from {operation}")
        return new, metrics

    def save():
        flush()
        log.sync()
        notes = {"pending": pending, "num_examples": source.num_examples, **skips}
        notes |= {"identity": run_directory.identity(*run), "history": history}
        checkpoints.save(manager, step, state, notes)

    def draw_grid():
        """Draws a grid unless a signal comes first; then, as the file is missing, the run draws it when it continues."""
        shown = partial(plots.picture, kinds=len(task.labels), names=task.label_names)
        grid = signals.unless_asked(lambda: shown(draw(state.ema[config.sampler.ema]).x))
        if grid is not None:
            log.grid(step, grid)
            try:
                plots.save_png(grid_path(), grid)
            except OSError as error:
                log.tell(error)

    def grid_path():
        return workdir / "samples" / f"training_{step:08}.png"

    advance = checked_step if c.debug_nans else run_step
    on_device: list[dict] = []  # metrics of the calls since the last flush
    first_step, logged, early = step, step, step + per_call + EARLY
    watch = Stopwatch()
    if restored is None and params is not None:
        save()
        checkpoints.finish(manager)
    with signals.deferred(), Progress(c.steps, "steps", step, every_seconds=math.inf) as progress:
        if draw and step and c.sample_every and step % c.sample_every == 0 and not grid_path().exists():
            draw_grid()
        stop = False
        while step < c.steps and not stop:
            if step == first_step:
                compile_start = time.monotonic()
                say("compiling the training step... ", end="")
                with signals.at_once():  # there is nothing to save yet
                    state, metrics = jax.block_until_ready(advance(state, *next(calls)))
                say(duration(time.monotonic() - compile_start))
                logged = step + per_call
                progress.restart(logged)
                watch.restart()
            else:
                state, metrics = advance(state, *next(calls))
            step += per_call
            on_device.append(metrics)
            progress(step)
            if early is not None and step >= early:
                early = None
                jax.block_until_ready(metrics)
                progress.line(f"step {step}/{c.steps}, {progress.time_left(step)}")

            if step % c.log_every == 0:
                flush()
                last_update = max(step - skips["skipped"] - 1, 0)
                values = metrics_of.summarise(pending) | {"learning_rate": float(learning_rate(last_update))}
                values["skipped"] = skips["skipped"]
                line = f"step {step}/{c.steps}  "
                if values["loss"] is not None:
                    line += f"loss {values['loss']:.4f}  grad {values['grad_norm']:.3f}  "
                if values["skipped"]:
                    line += f"{values['skipped']} skipped  "
                if step > logged:  # the first call, which compiles, is not timed
                    rate = (step - logged) / watch.seconds()
                    values |= {"images_per_second": rate * c.batch_size, "steps_per_second": rate}
                    line += f"{rate * c.batch_size:.0f} images/s  "
                if loss_of and step % config.eval.loss_every == 0:
                    values["eval_loss"] = loss_of(state.ema[config.sampler.ema])
                    line += f"held out {values['eval_loss'] or math.nan:.4f}  "
                log.scalars(step, values, task.levels)
                checkpoints.check(manager)
                progress.line(line + progress.time_left(step))
                pending.clear()
                logged = step
                watch.restart()
            checkpoint_due = step % c.checkpoint_every == 0 or step >= c.steps
            grid_due = draw and c.sample_every and step % c.sample_every == 0 and step < c.steps
            if checkpoint_due or grid_due:
                flush()  # outside of the pause: what is still being computed is none
            with watch.paused():
                if checkpoint_due:
                    save()
                if grid_due:
                    checkpoints.finish(manager)  # on the disk before what may take the memory, or be killed while it compiles
                    draw_grid()
                stop = signals.asked()
                if stop and not checkpoint_due:
                    save()
        checkpoints.finish(manager)
        if stop:
            progress.line(f"checkpoint of step {step} saved")
    calls.close()
    manager.close()
    return state


def steps_per_call(config: ConfigDict, start: int, platform: str) -> int:
    """How many steps one compiled call makes. It divides the start, the end and every interval between.

    On CPU 1 (a scanned step is many times slower there), and with debug_nans; elsewhere the largest divisor up to 10, unless
    the config says; and a divisor of that after a stop at a step that it does not divide, which only another number of
    steps per call can have made.
    """
    c = config.train
    common = math.gcd(c.steps, c.log_every, c.sample_every, c.checkpoint_every)
    if not c.steps_per_call:
        single = platform == "cpu" or c.debug_nans
        return 1 if single else max(k for k in range(1, 11) if math.gcd(start, common) % k == 0)
    if common % c.steps_per_call:
        raise UserError(
            f"train.steps_per_call is {c.steps_per_call}, which does not divide all of train.steps, log_every, "
            f"sample_every and checkpoint_every: take a divisor of {common}."
        )
    return math.gcd(start, c.steps_per_call)
