"""Drawing samples from parameters and writing them down."""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import images, plots
from ddpm_jax.diffusion.sample import Sampled
from ddpm_jax.training import parallel, run_directory
from ddpm_jax.training.progress import Report, silent
from ddpm_jax.training.tasks import Task

PROGRESS_FROM = 100  # grid points from which a batch reports from inside its scan, which bars it from the compilation cache


def make_draw(task: Task, sampler: ConfigDict, devices: Sequence):
    """A function draw(params, report) -> (images [N, H, W, C] in [-1, 1], network evaluations per sample), compiled once.

    Sample i depends on the seed and i alone. Batches are spread over the devices; the last one is filled up with samples
    that are dropped. report: see `progress.Progress`, counts grid points over all batches.
    """
    count = sampler.num_samples
    batch = min(sampler.batch_size, count)
    batch = -(-batch // len(devices)) * len(devices)
    current: list = [silent, 0]  # the report in use and the points done before this batch; the compiled function reads them

    def inside(done):
        current[0](current[1] + int(done))

    progress = inside if sampler.steps >= PROGRESS_FROM else None
    draw_batch = parallel.over_devices(
        partial(task.sample, progress=progress), devices, in_axes=(None, None, None, 0), out_axes=Sampled(0, None, None)
    )

    def draw(params, report: Report = silent):
        drawn = []
        for first in range(0, count, batch):
            current[:] = report, first // batch * sampler.steps
            indices = parallel.split(np.arange(first, first + batch, dtype=np.int32), devices)
            out, evaluations, _ = draw_batch(params, task.knobs, np.uint32(sampler.seed), indices)
            drawn.append(np.asarray(out).reshape(batch, *out.shape[2:]))
            jax.effects_barrier()
            report(current[1] + sampler.steps)
        current[0] = silent
        return np.concatenate(drawn)[:count], int(evaluations)

    return draw


def work(sampler: ConfigDict) -> int:
    """Grid points over all batches, what `report` counts up to (before the batch is fitted to the devices)."""
    return -(-sampler.num_samples // sampler.batch_size) * sampler.steps


def write_grid(path: Path, drawn: np.ndarray) -> None:
    """A PNG of the images in [-1, 1]."""
    plots.save_png(path, plots.image_grid(images.to_uint8(drawn)))


def write_samples(folder: Path, name: str, drawn: np.ndarray, facts: dict[str, Any]) -> list[Path]:
    """NAME.png (a grid), NAME.npz (`images`, uint8 [N, H, W, C]) and NAME.json (the facts)."""
    paths = [folder / f"{name}.{ending}" for ending in ("png", "npz", "json")]
    write_grid(paths[0], drawn)
    np.savez_compressed(paths[1], images=images.to_uint8(drawn))
    run_directory.write_text(paths[2], json.dumps(facts, indent=2) + "\n")
    return paths


def sample_name(sampler: ConfigDict, step: int) -> str:
    """A file name that says how the samples came about: step_00001000_ddim50_eta0.5_seed0_n64."""
    detail = f"_eta{sampler.eta:g}" if sampler.name == "ddim" else ""
    return f"step_{step:08}_{sampler.name}{sampler.steps}{detail}_seed{sampler.seed}_n{sampler.num_samples}"


def timed(draw, params, report: Report) -> tuple[np.ndarray, int, float]:
    """(images, evaluations, seconds), compilation included."""
    start = time.monotonic()
    drawn, evaluations = draw(params, report)
    return drawn, evaluations, time.monotonic() - start
