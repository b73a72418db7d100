"""What the command line's modes do."""

from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ddpm_jax.construct import construct
from ddpm_jax.data import SOURCES
from ddpm_jax.errors import UserError
from ddpm_jax.training import checkpoints, loop, parallel, run_directory, sampling
from ddpm_jax.training.optimizers import OPTIMIZERS
from ddpm_jax.training.progress import Progress, duration
from ddpm_jax.training.step import State, init_state
from ddpm_jax.training.tasks import Task, build


def train(config: ConfigDict, workdir: Path) -> None:
    """Trains, or continues, or finds the run complete; then samples, if these samples are not there yet."""
    devices = jax.local_devices()
    parallel.check_divisible(config.train.batch_size, devices)
    source = construct(SOURCES, config.data)
    image_shape = source.arrays["image"].shape[1:]
    task = build(config, image_shape)
    run_directory.write(workdir, config, image_shape)
    state = loop.train(config, workdir, task, source, devices)
    if not (workdir / "samples" / f"{sampling.sample_name(config.sampler, int(state.step))}.json").exists():
        draw_and_write(config, workdir, task, state)


def sample(config: ConfigDict, workdir: Path) -> None:
    """Samples from the newest checkpoint of a run."""
    _, image_shape = run_directory.read(workdir)
    task = build(config, image_shape)
    manager = checkpoints.open_manager(workdir / "checkpoints", read_only=True)
    optimizer = construct(OPTIMIZERS, config.optim)
    restored = checkpoints.restore_latest(manager, jax.eval_shape(lambda: init_state(task, optimizer, config.seed)))
    if restored is None:
        first = min(config.train.checkpoint_every, config.train.steps)
        raise UserError(f"{workdir} has no checkpoint yet: the first comes at step {first}. Train it with --workdir={workdir}.")
    draw_and_write(config, workdir, task, restored[1])


def draw_and_write(config: ConfigDict, workdir: Path, task: Task, state: State) -> None:
    """Samples with the averaged parameters and writes the files, whose names it prints."""
    devices = jax.local_devices()
    draw = sampling.make_draw(task, config.sampler, devices)
    print(f"sampling {config.sampler.num_samples} with {config.sampler.name}, {config.sampler.steps} steps", flush=True)
    with Progress(sampling.work(config.sampler), "sampling steps") as progress:
        drawn, evaluations, seconds = sampling.timed(draw, parallel.replicate(state.ema, devices), progress)
    facts = {
        "sampler": config.sampler.to_dict(),
        "seed": config.sampler.seed,
        "checkpoint_step": int(state.step),
        "network_evaluations": evaluations,
        "seconds": round(seconds, 3),
        "device": f"{len(devices)} x {devices[0].device_kind}",
    }
    name = sampling.sample_name(config.sampler, int(state.step))
    paths = sampling.write_samples(workdir / "samples", name, drawn, facts)
    print(
        f"{evaluations} network evaluations per sample, {duration(seconds)} with compilation; wrote "
        + ", ".join(map(str, paths))
    )


JOBS: dict[str, Callable[[ConfigDict, Path], None]] = {"train": train, "sample": sample}
