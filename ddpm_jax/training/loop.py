"""The training loop: batch k, the step, metrics, until the configured number of steps. What is kept, its caller says."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import signals
from ddpm_jax.data import Source, Streamed, batch_indices
from ddpm_jax.diffusion.keys import Purpose, words_of
from ddpm_jax.errors import Diverged, UserError
from ddpm_jax.optimizers import optimizer_of, schedule_of
from ddpm_jax.progress import Progress, Stopwatch, duration
from ddpm_jax.tasks.task import Task
from ddpm_jax.terminal import say
from ddpm_jax.training import metrics as metrics_of
from ddpm_jax.training import parallel
from ddpm_jax.training.debug import first_nonfinite
from ddpm_jax.training.feed import open_feed
from ddpm_jax.training.held_out import make_loss
from ddpm_jax.training.step import State, make_step

EARLY = 10  # steps after which the time left is told for the first time


class Start(NamedTuple):
    """Where training begins: after `step` steps, with the metrics of those that no line was logged of, see `metrics`."""

    step: int
    state: State
    pending: dict[str, list]
    skips: dict[str, int]


class Keep(NamedTuple):
    """What the loop calls to keep what is made.

    save(Start): begins to write a checkpoint. finish(): returns when it is written. check(): raises what it failed of.
    newest() -> the step of the newest, or None. scalars(step, values, levels): logs a line. snapshot(step, state): keeps its
    averages of config.ema.widths for good. draw(step, params, frozen): draws the grid of samples of a step, unless a signal
    comes first; drawn(step) -> whether it is there; None where a task has no samples.
    """

    save: Callable[[Start], None]
    finish: Callable[[], None]
    check: Callable[[], None]
    newest: Callable[[], int | None]
    scalars: Callable[[int, dict[str, Any], tuple[float, float]], None]
    snapshot: Callable[[int, State], None]
    draw: Callable[[int, Any, Any], None] | None
    drawn: Callable[[int], bool]


def train(
    config: ConfigDict,
    task: Task,
    source: Source | Streamed,
    devices: Sequence,
    start: Start,
    keep: Keep,
    held_out: Source | Streamed | None = None,
) -> State:
    """Trains from `start` to config.train.steps. Returns the state, on the devices.

    held_out: data whose mean loss, by the average that sampler.ema names, is logged as eval_loss every config.eval.loss_every
    steps. Raises Diverged at a non-finite loss or gradient, or where config.train.on_nonfinite=skip has skipped as many updates
    in a row as config.train.max_skips. Where the command line listens to signals, the step in which one comes is the last, with
    a checkpoint.
    """
    c = config.train
    optimizer, learning_rate = optimizer_of(config), schedule_of(config)
    step, state, pending, skips = start
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
        ema_widths=config.ema.widths,
        micro_batches=c.micro_batches,
        addresses=config.addresses,
    )
    donate = () if c.debug_nans else (0,)  # what is run again to find the operation
    run_step = parallel.over_devices(one_device, devices, in_axes=(None, *axes), out_axes=(None, None), donate=donate)
    state = parallel.replicate(state, devices)
    loss_of = make_loss(task, config, held_out, devices) if held_out else None

    def diverged(problem):
        keep.finish()
        kept = keep.newest()
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
        keep.save(Start(step, state, pending, skips))

    advance = checked_step if c.debug_nans else run_step
    on_device: list[dict] = []  # metrics of the calls since the last flush
    first_step, logged, early = step, step, step + per_call + EARLY
    watch = Stopwatch()
    with signals.deferred(), Progress(c.steps, "steps", step, every_seconds=math.inf) as progress:
        if keep.draw and step and c.sample_every and step % c.sample_every == 0 and not keep.drawn(step):
            keep.draw(step, state.ema[config.sampler.ema], state.frozen)
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
                    values["eval_loss"] = loss_of(state.ema[config.sampler.ema], state.frozen)
                    line += f"held out {values['eval_loss'] or math.nan:.4f}  "
                keep.scalars(step, values, task.levels)
                keep.check()
                progress.line(line + progress.time_left(step))
                pending.clear()
                logged = step
                watch.restart()
            checkpoint_due = step % c.checkpoint_every == 0 or step >= c.steps
            grid_due = keep.draw and c.sample_every and step % c.sample_every == 0 and step < c.steps
            snapshot_due = config.ema.widths and config.ema.snapshot_every and step % config.ema.snapshot_every == 0
            if checkpoint_due or grid_due:
                flush()  # outside of the pause: what is still being computed is none
            with watch.paused():
                if snapshot_due:
                    keep.snapshot(step, state)  # before the checkpoint: with one of this step, its averages are there
                if checkpoint_due:
                    save()
                if grid_due:
                    keep.finish()  # on the disk before what may take the memory, or be killed while it compiles
                    keep.draw(step, state.ema[config.sampler.ema], state.frozen)
                stop = signals.asked()
                if stop and not checkpoint_due:
                    save()
        keep.finish()
        if stop:
            progress.line(f"checkpoint of step {step} saved")
    calls.close()
    return state


def steps_per_call(config: ConfigDict, start: int, platform: str) -> int:
    """How many steps one compiled call makes. It divides the start, the end and every interval between.

    On CPU 1 (a scanned step is many times slower there), and with debug_nans; elsewhere the largest divisor up to 10, unless
    the config says; and a divisor of that after a stop at a step that it does not divide, which only another number of
    steps per call can have made.
    """
    c = config.train
    snapshots = config.ema.snapshot_every if config.ema.widths else 0
    common = math.gcd(c.steps, c.log_every, c.sample_every, c.checkpoint_every, snapshots)
    if not c.steps_per_call:
        single = platform == "cpu" or c.debug_nans
        return 1 if single else max(k for k in range(1, 11) if math.gcd(start, common) % k == 0)
    if common % c.steps_per_call:
        raise UserError(
            f"train.steps_per_call is {c.steps_per_call}, which does not divide all of train.steps, log_every, "
            f"sample_every, checkpoint_every and ema.snapshot_every: take a divisor of {common}."
        )
    return math.gcd(start, c.steps_per_call)
