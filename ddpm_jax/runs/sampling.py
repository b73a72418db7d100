"""Drawing samples from parameters and writing them down."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import files, images, plots
from ddpm_jax.config import GUIDES, acting, applies, average_of, is_default
from ddpm_jax.diffusion.sample import Sampled
from ddpm_jax.errors import UserError
from ddpm_jax.progress import Report, silent
from ddpm_jax.runs import run_directory
from ddpm_jax.runs.parts import Parts
from ddpm_jax.tasks.conditions import UNCONDITIONAL, Conditioning
from ddpm_jax.tasks.task import NO_SAMPLES, Task
from ddpm_jax.training import parallel
from ddpm_jax.writers import WAYS

# Keys of the sampler that are in a file's name in words of their own, or change nothing that it holds.
ELSEWHERE = ("checkpoint", "name", "steps", "eta", "ema", "ema_width", "seed", "num_samples", "batch_size", "frames", "save")
IN_A_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}")  # what a value may look like in a file's name
PARTS = 20  # of the transitions of a batch, at most, after each of which its progress is reported


def make_batches(task: Task, sampler: ConfigDict, devices: Sequence):
    """A function batches(params, frozen, report, knobs, seed, first) that yields one batch of `num_samples` samples after the
    other, as Sampled of NumPy arrays, from the batch `first` on. With batch 0 come sampler.frames frames, where they are 2 or
    more.

    Sample i depends on the seed, i and its condition alone. Batches are spread over the devices; the last one is filled up with
    samples that are dropped. report: see `progress.Progress`, counts grid points over all batches, each as `points` of the
    knobs. knobs and seed: by default the task's and the sampler's. Whether and how often it reports does not change a bit, and
    all programs come from the compilation cache. Raises UserError for a task with nothing to sample.
    """
    if task.course is None:
        raise UserError(NO_SAMPLES)
    count, batch = sampler.num_samples, batch_size(sampler, devices)
    frames = min(sampler.frames, sampler.steps) if min(sampler.frames, sampler.steps) > 1 else 0
    course = partial(task.course, frames=frames)

    def begin_part(*of):
        return course(*of).begin()

    def advance_part(carry, low, high, *of):
        return course(*of).advance(carry, low, high)

    def finish_part(carry, *of):
        drawn = course(*of).finish(carry)
        return drawn._replace(evaluations=jnp.reshape(drawn.evaluations, 1))

    of = (None, None, None, None, 0)
    begin = parallel.over_devices(begin_part, devices, of, 0)
    advance = parallel.over_devices(advance_part, devices, (0, None, None, *of), 0)
    finish = parallel.over_devices(finish_part, devices, (0, *of), Sampled(0, 0, 0 if frames else None))

    def batches(
        params, frozen, report: Report = silent, knobs=task.knobs, seed: int = sampler.seed, first: int = 0
    ) -> Iterator[Sampled]:
        transitions = points(knobs) - 1
        ends = np.linspace(0, transitions, 1 + min(1 if report is silent else PARTS, transitions)).astype(np.int32)
        for start in range(first * batch, count, batch):
            indices = parallel.split(np.arange(start, start + batch, dtype=np.int32), devices)
            done, of = start // batch * points(knobs), (params, frozen, knobs, np.uint32(seed), indices)
            carry = begin(*of)
            for low, high in itertools.pairwise(ends):
                carry = advance(carry, low, high, *of)
                if report is not silent:
                    jax.block_until_ready(carry)
                    report(done + int(high))
            out = jax.device_get(finish(carry, *of))
            x = np.concatenate(out.x)[: count - start]
            film = np.concatenate(out.frames, axis=1)[:, :count] if frames and start == 0 else None
            report(done + points(knobs))
            yield Sampled(x, int(np.max(out.evaluations)), film)

    return batches


def make_draw(task: Task, sampler: ConfigDict, devices: Sequence):
    """A function draw(params, frozen, report, knobs, seed) -> Sampled: all batches of `make_batches` in one."""
    batches = make_batches(task, sampler, devices)

    def draw(*args, **kwargs) -> Sampled:
        drawn = [*batches(*args, **kwargs)]
        return Sampled(np.concatenate([part.x for part in drawn]), max(part.evaluations for part in drawn), drawn[0].frames)

    return draw


def make_preview(task: Task, sampler: ConfigDict, devices: Sequence):
    """`make_draw` for the grids on the way: the first batch of the samples, as far as a picture shows it, and nothing else."""
    preview = sampler.copy_and_resolve_references()
    preview.update(frames=0, num_samples=min(sampler.num_samples, sampler.batch_size))
    return make_draw(task, preview, devices)


def batch_size(sampler: ConfigDict, devices: Sequence) -> int:
    """The samples of one batch: at most as configured, but for what makes them divisible by the devices."""
    return -(-min(sampler.batch_size, sampler.num_samples) // len(devices)) * len(devices)


def points(knobs: Any) -> int:
    """Grid points of a batch."""
    return len(knobs.grid)


def work(sampler: ConfigDict, devices: Sequence, knobs: Any) -> int:
    """Grid points over all batches, what `report` counts up to."""
    return -(-sampler.num_samples // batch_size(sampler, devices)) * points(knobs)


def write_samples(
    folder: Path,
    name: str,
    parts: Parts,
    facts: dict[str, Any],
    condition: Conditioning = UNCONDITIONAL,
    picture: np.ndarray | None = None,
    way: str = "npz",
) -> list[Path]:
    """NAME.png, a picture of the first samples; the samples, as WAYS[way] writes them; at last NAME.json, the facts.

    All of them appear, or none. NAME.json names the others as `files`. Returns their paths.

    condition: what the samples are conditioned on: a row of the picture for each, with its name.
    picture: in place of that of the samples. Of the frames, where there are any: NAME_trajectory.gif and NAME_trajectory.png.
    """
    if picture is None:
        points = parts.rows(np.arange(1)).ndim == 2
        shown = parts.rows(np.arange(parts.count if points else min(parts.count, plots.PICTURED)))
        shown = shown if points else np.asarray(images.to_model(shown))
        picture = plots.picture(shown, kinds=condition.count, names=condition.names)
    rows = condition.written(condition.rows)
    with files.together() as together:
        paths = [folder / f"{name}.png", WAYS[way](folder / name, parts, rows, together)]
        plots.save_png(paths[0], picture, together.opens)
        if (film := parts.frames) is not None:
            paths += write_film(folder, f"{name}_trajectory", film, together.opens)
        files.write_json(folder / f"{name}.json", facts | {"files": [path.name for path in paths]}, together.opens)
    return [*paths, folder / f"{name}.json"]


def identity(config: ConfigDict, params: Any, frozen: Any, knobs: Any, step: int, devices: Sequence) -> str:
    """A digest of all that samples depend on, to the last bit; not of how many they are, or in what files."""
    acts = how(config) | {"inpaint": config.inpaint.to_dict()}
    acts["sampler"] = {key: value for key, value in acts["sampler"].items() if key not in ("num_samples", "save")}
    where = [step, batch_size(config.sampler, devices), len(devices), devices[0].device_kind, jax.__version__]
    digest = hashlib.sha256(json.dumps([acts, where], sort_keys=True).encode())
    for leaf in jax.tree.leaves((params, frozen, knobs)):
        leaf = np.asarray(leaf)
        digest.update(f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()


def how(config: ConfigDict) -> dict[str, Any]:
    """The keys that samples depend on with the values that act, by section, as JSON gives them back: tuples as lists."""
    sections = {}
    for name in ("sampler", "guidance"):
        keys = [key for key in config[name] if applies(f"{name}.{key}", config)]
        sections[name] = {key: acting(f"{name}.{key}", config) for key in keys}
    return json.loads(json.dumps(sections))


def are_of(facts: dict[str, Any], config: ConfigDict) -> bool:
    """Whether these facts of samples, see `read_facts`, are those of the config."""
    found = {name: facts.get(name) for name in how(config)}
    return all(isinstance(found[name], dict) and found[name].items() >= acts.items() for name, acts in how(config).items())


def read_facts(folder: Path, name: str) -> dict[str, Any]:
    """The facts that `write_samples` wrote of these samples; {} where there are none, or one of their files is gone."""
    try:
        facts = {**files.read_json(folder / f"{name}.json")}
        if isinstance(facts.get("sampler"), dict):
            facts["sampler"] = run_directory.fixed_variances(facts["sampler"])
        needed = facts.pop("files", [f"{name}.png", f"{name}.npz"])  # of before it is not told
        return facts if all(_is_there(folder / file, facts) for file in needed) else {}
    except (files.Unreadable, TypeError, AttributeError):
        return {}


def _is_there(path, facts):
    """Whether a file is, or a folder with as many files as there are samples."""
    return len(list(path.iterdir())) == facts.get("sampler", {}).get("num_samples") if path.is_dir() else path.exists()


def write_film(folder: Path, name: str, film: np.ndarray, opens: files.Opens = files.whole) -> list[Path]:
    """NAME.gif, an animation, and NAME.png, a filmstrip."""
    paths = [folder / f"{name}.gif", folder / f"{name}.png"]
    film = plots.in_view(film)
    plots.save_gif(paths[0], film, opens=opens)
    plots.save_png(paths[1], plots.filmstrip(film), opens)
    return paths


def sample_name(config: ConfigDict, step: int) -> str:
    """A file name that says how the samples came about: step_00001000_ddim50_eta0.5_seed0_n64.

    Other keys, guidance's too, appear where they are not the defaults and apply; ema, the decay, where there are several.
    """
    sampler = config.sampler
    parts = [f"step_{step:08}", f"{sampler.name}{sampler.steps}"]
    if applies("sampler.eta", config):
        parts.append("eta" + _in_a_name(f"{acting('sampler.eta', config):g}"))
    others = [key for key in sampler if key not in ELSEWHERE and applies(f"sampler.{key}", config)]
    given = [key for key in others if not is_default(f"sampler.{key}", config)]
    parts += [f"{key}_{_in_a_name(sampler[key])}" for key in given]
    guidance = [key for key in config.guidance if applies(f"guidance.{key}", config)]
    guidance = [key for key in guidance if not is_default(f"guidance.{key}", config)]
    in_a_name = {key: _path_in_a_name if f"guidance.{key}" in GUIDES else _in_a_name for key in guidance}
    parts += [f"guidance_{key}_{in_a_name[key](config.guidance[key])}" for key in guidance]
    if config.inpaint.images:
        parts += ["inpaint", config.inpaint.method, *(_path_in_a_name(config.inpaint[key]) for key in ("images", "mask"))]
        others = [key for key in ("resamplings", "zeta", "iterations") if applies(f"inpaint.{key}", config)]
        parts += [f"{key}_{config.inpaint[key]}" for key in others]
    ((kind, number),) = average_of(config).items()
    parts += [f"{kind.removesuffix('_decay')}{number}"] * (len(config.ema.decays) + len(config.ema.widths) > 1)
    return "_".join([*parts, f"seed{sampler.seed}", f"n{sampler.num_samples}"])


def _in_a_name(value: Any) -> str:
    """A value of the config as part of a file name: of what is long or of other characters 8 digits of its SHA-256."""
    text = "-".join(map(str, value)) if isinstance(value, tuple) else str(value).replace(",", "-")
    return text if IN_A_NAME.fullmatch(text) else _digits(text)


def _path_in_a_name(path: str) -> str:
    """Its last part, and 8 digits of the SHA-256 of all of it: two files may be called alike."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(path).stem[:40])}-{_digits(str(Path(path).expanduser().absolute()))}"


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
