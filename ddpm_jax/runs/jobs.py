"""What the command line's modes do."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import files, plots
from ddpm_jax.config import average_of
from ddpm_jax.construct import construct
from ddpm_jax.data import SOURCES, Source, Streamed, identity, steps_per_epoch
from ddpm_jax.diffusion.keys import Purpose, keys_of
from ddpm_jax.progress import Progress, duration
from ddpm_jax.runs import checkpoints, logs, resumable, run, run_directory, sampling
from ddpm_jax.runs import history as histories
from ddpm_jax.runs.parts import Parts
from ddpm_jax.tasks import build, inpainting
from ddpm_jax.tasks.task import Task
from ddpm_jax.terminal import say
from ddpm_jax.training import loop, parallel
from ddpm_jax.training.held_out import open_held_out
from ddpm_jax.training.step import State


def train(config: ConfigDict, workdir: Path, variants: Sequence[str] = ()) -> None:
    """Trains, or continues, or finds the run complete; then samples, where it can, and draws the loss, unless that was done.

    variants: those that made the config, for the record.
    """
    devices = jax.local_devices()
    parallel.check_divisible(config.train.batch_size, devices, config.train.micro_batches)
    loop.steps_per_call(config, 0, devices[0].platform)
    source = construct(SOURCES, config.data)
    if source.class_names and source.class_names != tuple(map(str, range(source.num_classes))):
        say(f"labels: {identity.numbered(source.class_names)}")
    task = build(config, source.image_shape, source.num_classes, run.load_guides(config), source.class_names)
    steps_per_epoch(source.num_examples, config.train.batch_size)  # raises where the set is smaller than a batch
    held_out = open_held_out(config, source)
    with run_directory.held(workdir):
        if run_directory.exists(workdir):
            run_directory.check_agreement(workdir, config)
            run_directory.check_data(workdir, source)
        else:
            run_directory.check_new(workdir)
        run_directory.create(workdir)
        params, origin = None, {}
        if config.train.init and not checkpoints.steps(workdir / "checkpoints"):
            params, origin = run.initial(config, task)

        def begin(start, notes):
            step = start.step
            changed = run_directory.changes_of(workdir, config, notes) if step else {}
            for key, (before, after) in changed.items():
                say(f"changed on purpose from step {step} on: {key}: {before!r} -> {after!r}")
            past = notes.get("history", [])
            trains = step < config.train.steps or changed
            history = histories.extended(past, step, variants, changed, origin) if trains else past
            run_directory.write(workdir, config, source.image_shape, source.num_classes, source.identity, history)
            draw_forward_process(config, workdir, task, start.state.frozen, source)
            return history

        state = resumable.train(config, workdir, task, source, devices, held_out=held_out, params=params, begin=begin)
        name = sampling.sample_name(config, int(state.step))
        if task.course and not sampling.are_of(sampling.read_facts(workdir / "samples", name), config):
            draw_and_write(config, workdir, task, state)
        lines = logs.read(workdir / "metrics.jsonl")
        if lines:
            plots.save_curve(workdir / "loss.png", [line["step"] for line in lines], [line["loss"] for line in lines])


def sample(config: ConfigDict, workdir: Path) -> None:
    """Samples from the checkpoint of a run that config.sampler.checkpoint names."""
    restored = run.restore(workdir, config)
    given = inpainting.read(config.inpaint, restored.image_shape) if config.inpaint.images else ()
    draw_and_write(config, workdir, restored.task, restored.state, given, restored.params)


def draw_forward_process(
    config: ConfigDict, workdir: Path, task: Task, frozen: Any, source: Source | Streamed, examples: int = 8
) -> None:
    """Some examples on their way into noise, as an animation and a filmstrip."""
    folder = files.folder(workdir, "samples")
    if config.sampler.frames < 3 or (folder / "forward_process.png").exists():
        return
    count = min(examples if len(source.image_shape) == 3 else 2000, source.num_examples)
    batch = source.gather(np.arange(count))
    keys = keys_of(config.seed, Purpose.FORWARD_PROCESS, np.arange(count), config.addresses)
    film = jax.jit(task.noised, static_argnums=3)(frozen, batch, keys, config.sampler.frames)
    sampling.write_film(folder, "forward_process", np.asarray(film))


def draw_and_write(
    config: ConfigDict,
    workdir: Path,
    task: Task,
    state: State,
    given: inpainting.Given | tuple = (),
    params: Any = None,
) -> None:
    """Samples with the averaged parameters that sampler.ema names, or others, and writes the files, whose names it prints.

    Every batch is on the disk as soon as it is drawn. What was drawn in the same way until a kill is not drawn again.
    given: what to inpaint. Raises UserError where the method of inpainting does not go with the sampler.
    """
    devices, c = jax.local_devices(), config.sampler
    batches = sampling.make_batches(task, c, devices)
    params, knobs = state.ema[c.ema] if params is None else params, task.knobs._replace(given=given)
    how = f"{c.name}, {c.steps} steps"
    if given:
        inpainting.check_condition(task)
        inpainting.check(config, task, params, state.frozen, knobs)
        how += f", inpainting {len(given.images)} images by {config.inpaint.method}"
    step = int(state.step)
    folder, name = files.folder(workdir, "samples"), sampling.sample_name(config, step)
    drawn_as = sampling.identity(config, params, state.frozen, knobs, step, devices)
    parts = Parts(folder, name, drawn_as, sampling.batch_size(c, devices), c.num_samples)
    for other in sorted({*folder.glob("*.parts")} - {parts.folder}):
        say(f"{other} holds samples of a command that still runs or was stopped: start it again to go on, or remove the folder")
    done = parts.done()
    there = f"; {min(done * parts.batch, parts.count)} of them are there from before" if done else ""
    say(f"sampling {c.num_samples} with {how}{there}")
    start = time.monotonic()
    with Progress(sampling.work(c, devices, knobs), "sampling steps", done * sampling.points(knobs)) as progress:
        given_all = parallel.replicate((params, state.frozen), devices)
        for number, drawn in enumerate(batches(*given_all, progress, knobs, first=done), done):
            parts.add(number, drawn)
    seconds = time.monotonic() - start
    facts = {
        **sampling.how(config),
        **({"inpaint": config.inpaint.to_dict()} if given else {}),
        "seed": c.seed,
        "checkpoint_step": step,
        **average_of(config),
        "network_evaluations": parts.evaluations,
        "seconds": round(seconds, 3),
        "device": f"{len(devices)} x {devices[0].device_kind}",
    }
    picture = inpainting.picture(given, parts.count, parts.rows) if given else None
    paths = sampling.write_samples(folder, name, parts, facts, task.condition, picture, c.save)
    parts.remove()
    say(
        f"{facts['network_evaluations']} network evaluations per sample, {duration(seconds)} with compilation; wrote",
        *(f"  {path}" for path in paths),
    )


JOBS: dict[str, Callable[[ConfigDict, Path], None]] = {"train": train, "sample": sample}
