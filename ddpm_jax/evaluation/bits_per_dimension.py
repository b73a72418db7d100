"""Bits per dimension of a run on a set of examples: by the probability-flow ODE and by the variational bound."""

import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpm_jax import files, images, lines
from ddpm_jax.config import average_of
from ddpm_jax.construct import arguments, construct
from ddpm_jax.data import SOURCES, Source, Streamed
from ddpm_jax.data.identity import Identity, digest
from ddpm_jax.diffusion import likelihood
from ddpm_jax.diffusion.bound import BOUND_VARIANCES, bins, density
from ddpm_jax.diffusion.keys import SHARED, Purpose, keys_of
from ddpm_jax.diffusion.posterior import FIXED_VARIANCES
from ddpm_jax.diffusion.process import reaches_data
from ddpm_jax.diffusion.transforms import clipped
from ddpm_jax.errors import UserError, tell_machine
from ddpm_jax.evaluation import records
from ddpm_jax.progress import Progress, Report, duration
from ddpm_jax.runs.run import Run
from ddpm_jax.tasks.choices import choose
from ddpm_jax.tasks.task import Task
from ddpm_jax.terminal import say
from ddpm_jax.training import parallel

# What a random number of an evaluation is for: what its address, see `diffusion.keys`, has after the example.
DEQUANTISE, PROBE, NOISE, ENCODE = range(4)
NUMBERS = ("ode", "ode_evaluations", "bound", "bound_prior", "bound_decoder", "bound_evaluations")  # of an example
LEVEL = 7.0  # bits of a pixel's level, of the 8 of it where x has the width 2: see `likelihood.dequantised_bits`
OVER = (None, None, 0, 0, 0)  # how the arguments of what is computed lie over devices
PARTS = 10  # of the chain, for which the bound's terms are kept apart


def evaluate(run: Run, source: Source | Streamed) -> dict[str, Any]:
    """Evaluates the first config.eval.num_examples of the source, prints both numbers and writes them under evaluations/.

    NAME.jsonl holds the results of each example, in nats, and is continued where it ends; NAME.json the conditions and the
    means. An example's result depends on the conditions and its place in the source alone. Returns what NAME.json holds.
    Raises UserError where the settings do not go together, or a result is not finite.
    """
    c, devices = run.config.eval, jax.local_devices()
    count = min(c.num_examples or source.num_examples, source.num_examples)
    conditions = conditions_of(run, source.identity)
    folder = files.folder(run.workdir, "evaluations")
    path = records.path_of(folder, f"bits_per_dimension_step_{int(run.state.step):08}", conditions)
    results = records.open_records(path, conditions, is_result)
    left = [i for i in range(count) if i not in results]
    start = time.monotonic()

    def gather(places):
        batch = source.gather(places)
        return batch["image"], run.task.condition.of(batch)

    if left:
        say(f"bits per dimension of {count} examples of the split {c.split}, {count - len(left)} of them done")
        compute = parallel.over_devices(make_compute(run.task, run.config, source.image_shape), devices, OVER, 0)
    with Progress(count, "examples", count - len(left)) as progress:
        for now, found in in_batches(compute, run, gather, left, devices) if left else ():
            new = [{"example": i} | {name: found[name][k].tolist() for name in found} for k, i in enumerate(now)]
            _check_finite(now, found["ode"], found["bound"])
            records.append(path, new)
            results |= {line["example"]: line for line in new}
            progress(count - sum(i not in results for i in left))
    summary = {"conditions": conditions, **summarise([results[i] for i in range(count)], source.image_shape)}
    files.write_json(path.with_suffix(".json"), summary)
    say(*report(summary), f"{duration(time.monotonic() - start)}; wrote", f"  {path}", f"  {path.with_suffix('.json')}")
    return summary


def _explained(compute, *args):
    try:
        return compute(*args)
    except ValueError as error:
        tell_machine(error)
        raise UserError(f"The settings of config.eval do not suit the run: {error}.") from error


def is_result(line: dict[str, Any]) -> bool:
    """Whether a line of the file has the results of an example, as `make_compute` computes them."""
    if set(line) != {"example", "bound_terms", *NUMBERS} or not all(lines.is_number(line[name]) for name in NUMBERS):
        return False
    terms = line["bound_terms"]
    return isinstance(terms, list) and len(terms) == PARTS and all(map(lines.is_number, terms))


def conditions_of(run: Run, identity: Identity) -> dict[str, Any]:
    """All that an example's result depends on, but for rounding. identity: of the data that are evaluated."""
    c, process = run.config.eval, run.process
    data = arguments(SOURCES[run.config.data.name], run.config.data)
    here = ("split", "data_dir", "raw_dir", "path", "memory_limit_mb")
    data = {"name": run.config.data.name, "split": c.split} | {key: data[key] for key in data if key not in here}
    data |= {"given": run.task.condition.name} if run.task.condition.shown else {}
    data |= {"content": digest(json.dumps(identity, sort_keys=True).encode())} if identity else {}
    return conditions_of_the_ode(run) | {
        "data": data,
        "bound": {
            "transitions": len(likelihood.chain_times(process, steps=c.bound_steps)) - (not reaches_data(process)),
            "evaluated": c.bound_terms or "all",
            "variance": variance_of(run.config).removeprefix("fixed_"),  # as in files that are there
            **({} if run.task.space.is_data else {"dequantised": True}),
        },
    }


def conditions_of_the_ode(run: Run) -> dict[str, Any]:
    """Those of them that the likelihood along the probability-flow ODE has."""
    c, addresses = run.config.eval, run.config.addresses
    return ({} if addresses == SHARED else {"addresses": addresses}) | {
        "checkpoint_step": int(run.state.step),
        **average_of(run.config),
        "seed": c.seed,
        "ode": {
            "solver": c.solver,
            **arguments(likelihood.SOLVERS[c.solver], c),
            "probe": c.probe,
            "probes": c.probes,
            "t_min": float(run.process.t_min.likelihood),
            "dequantised": len(run.image_shape) == 3,
        },
    }


def variance_of(config: ConfigDict) -> str:
    """The name of the bound's variance: config.eval.variance, or what it stands for. UserError for one that was not learned."""
    learned, name = choose(config).loss.learns, config.eval.variance
    name = (learned or "fixed_large") if name == "auto" else name
    if name not in (*FIXED_VARIANCES, learned):
        raise UserError(f"config.eval.variance={name} was not learned by this run: take auto, fixed_small or fixed_large.")
    return name


class LogLikelihood(NamedTuple):
    """Of images [N] by the probability-flow ODE, exact but for the solver's error and the probes' noise.

    nats: of pixels, the log-probability of the levels that dequantisation bounds from below; of points, the log density.
    bits_per_dimension: -nats / (D log 2), D the numbers in an image. conditions: all that they depend on, but for rounding.
    """

    nats: np.ndarray
    bits_per_dimension: np.ndarray
    evaluations: np.ndarray
    conditions: dict[str, Any]


def log_likelihood(run: Run, rows: np.ndarray, condition: Any, report: Report) -> LogLikelihood:
    """Of images [N, H, W, C], uint8, or points; run.config.eval says how. condition: rows [N, ...], of a conditional run.

    What image i gets depends on its place i, not on the batch or the devices. Raises UserError where the settings do not go
    together, or a result is not finite.
    """
    devices, shape = jax.local_devices(), run.image_shape
    key = json.dumps(["likelihood", run.config.eval.to_dict()])
    ode = run.compiled.get(key) or parallel.over_devices(make_ode(run.task, run.config, shape), devices, OVER, 0)
    run.compiled[key] = ode

    def gather(indices):
        return rows[indices], jax.tree.map(lambda leaf: leaf[indices], condition)

    found = []
    for now, part in in_batches(ode, run, gather, [*range(len(rows))], devices):
        found.append(part)
        _check_finite(now, part["ode"])
        report(now[-1] + 1)
    nats, evaluations = (np.concatenate([part[name] for part in found]) for name in ("ode", "ode_evaluations"))
    nats = -np.float64(nats) - (math.prod(shape) * math.log(2) * LEVEL if len(shape) == 3 else 0.0)
    conditions = conditions_of_the_ode(run) | ({} if condition is None else {"given": run.task.condition.name})
    return LogLikelihood(nats, -nats / (math.prod(shape) * math.log(2)), evaluations, conditions)


def in_batches(compute: Callable, run: Run, gather: Callable, places: list[int], devices: Sequence):
    """Yields (places, {name: results [B, ...]}) of one batch after the other. compute is mapped over the devices.

    gather(places) -> (images [B, ...], the condition of each).
    """
    batch = -(-min(run.config.eval.batch_size, len(places)) // len(devices)) * len(devices)
    params = parallel.replicate((run.params, run.state.frozen), devices)
    for first in range(0, len(places), batch):
        now = places[first : first + batch]
        padded = np.array(now + now[-1:] * (batch - len(now)), np.int32)
        batched = jax.tree.map(lambda rows: parallel.split(rows, devices), (*gather(padded), padded))
        found = jax.device_get(_explained(compute, *params, *batched))
        yield now, {name: np.concatenate(values)[: len(now)] for name, values in found.items()}


def _check_finite(places, *results):
    """Raises UserError for the first example with a result that is not finite."""
    for place, values in zip(places, zip(*results, strict=True), strict=True):
        if not math.isfinite(sum(values)):
            raise UserError(
                f"The likelihood of example {place} is not finite: the network's output is not, or the adaptive solver did not "
                "arrive. Raise --config.eval.rtol and atol, or take --config.eval.solver=rk4."
            )


def make_ode(task: Task, config: ConfigDict, shape: tuple[int, ...]) -> Callable:
    """A function ode(params, frozen, images [B, ...], condition, places [B]) -> {"ode": [B], "ode_evaluations": [B]}: -log
    density of the images in nats; of a conditional run that given the condition.

    Raises UserError for a model of states whose density is none of images.
    """
    c, process = config.eval, task.process
    solver, encoded = construct(likelihood.SOLVERS, c, choice="solver"), make_encoded(task, config, shape)

    def ode(params, frozen, rows, condition, places):
        denoise, probe = task.denoiser(params, frozen, condition), _keys(config, places, PROBE)
        x, volume = encoded(frozen, rows, places)
        found = likelihood.log_likelihood(denoise, process, x, probe, solver=solver, probe=c.probe, probes=c.probes)
        return {"ode": -found.log_density - volume, "ode_evaluations": found.evaluations}

    return ode


def make_encoded(task: Task, config: ConfigDict, shape: tuple[int, ...]) -> Callable:
    """A function encoded(frozen, images [B, ...], places) -> (x0 [B, ...], log |det dx0 / d image|), of dequantised pixels.

    Raises UserError where there is no such determinant.
    """
    space = task.space
    if space.log_volume is None:
        raise UserError(
            "The likelihood of images is not known of a model whose states are no bijection of them, as an autoencoder's: take "
            "a run of pixels."
        )

    def encoded(frozen, rows, places):
        x = likelihood.dequantise(rows, _keys(config, places, DEQUANTISE)) if len(shape) == 3 else rows
        return space.encode(frozen, x, _keys(config, places, ENCODE)), space.log_volume(frozen)

    return encoded


def _keys(config, places, purpose):
    """Keys [B] of the examples' random numbers of one purpose."""
    keys = keys_of(config.eval.seed, Purpose.EVALUATION, places, config.addresses)
    return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)


def make_compute(task: Task, config: ConfigDict, shape: tuple[int, ...]) -> Callable:
    """A function compute(params, frozen, images [B, ...], condition, places [B]) -> {name: [B, ...]}, the results of these
    examples in nats; of a conditional run those given the condition.

    The bound is that of the pixels' levels, or, where states are no pixels, of the density of dequantised ones.
    """
    c, process, pixels = config.eval, task.process, len(shape) == 3
    levels, encoded = pixels and task.space.is_data, make_encoded(task, config, shape)
    variance, ode = BOUND_VARIANCES[variance_of(config)], make_ode(task, config, shape)
    times = likelihood.chain_times(process, steps=c.bound_steps)
    to_data = reaches_data(process)
    width = -(-(c.bound_terms or len(times) - 1) // PARTS)

    def compute(params, frozen, rows, condition, places):
        denoise, noise = task.denoiser(params, frozen, condition), _keys(config, places, NOISE)
        x, volume = (images.to_model(rows), 0.0) if levels else encoded(frozen, rows, places)
        bound = likelihood.variational_bound(
            clipped(denoise, process) if levels else denoise, process, x, noise, times,
            variance=variance, terms=c.bound_terms, to_data=to_data, decoder=bins if levels else density,
        )  # fmt: skip
        to_levels = math.prod(shape) * math.log(2) * LEVEL if pixels and not levels else 0.0
        bound = bound._replace(decoder=bound.decoder - volume + to_levels)
        padding = ((0, PARTS * width - len(bound.terms)), (0, 0))
        return {
            **ode(params, frozen, rows, condition, places),
            "bound": bound.prior + bound.terms.sum(0) + bound.decoder,
            "bound_prior": bound.prior,
            "bound_terms": jnp.pad(bound.terms, padding).reshape(PARTS, width, -1).sum(1).T,
            "bound_decoder": bound.decoder,
            "bound_evaluations": jnp.full(len(rows), bound.evaluations),
        }

    return compute


def summarise(results: list[dict[str, Any]], shape: tuple[int, ...]) -> dict[str, Any]:
    """Means over examples, and their standard errors, in bits per dimension.

    ode: -log2 p / D of the density, for images with the 7 bits of a level. bound: with its parts, L_T, the terms between by
    tenths of the chain, from noise to data, and the decoder's.
    """
    columns = {name: np.array([result[name] for result in results], np.float64) for name in results[0]}
    pixels = LEVEL if len(shape) == 3 else 0.0

    def mean(name):
        return (columns[name].mean(0) / (math.prod(shape) * math.log(2))).tolist()

    def error(name):
        spread = columns[name].std(ddof=1) if len(results) > 1 else math.nan
        spread /= len(results) ** 0.5 * math.prod(shape) * math.log(2)
        return spread if math.isfinite(spread) else None

    return {
        "examples": len(results),
        "ode": {
            "bits_per_dimension": mean("ode") + pixels,
            "standard_error": error("ode"),
            "evaluations": columns["ode_evaluations"].mean(),
        },
        "bound": {
            "bits_per_dimension": mean("bound"),
            "standard_error": error("bound"),
            "prior": mean("bound_prior"),
            "terms_by_tenth": mean("bound_terms"),
            "decoder": mean("bound_decoder"),
            "evaluations": columns["bound_evaluations"].mean(),
        },
    }


def report(summary: dict[str, Any]) -> list[str]:
    """What is printed: both numbers with their conditions."""
    conditions, ode, bound = summary["conditions"], summary["ode"], summary["bound"]
    how, chain = conditions["ode"], conditions["bound"]

    def number(part):
        error = "" if part["standard_error"] is None else f" +- {part['standard_error']:.4f}"
        return f"{part['bits_per_dimension']:.4f}{error} bits per dimension"

    data, width = conditions["data"], conditions.get("ema_width")
    average = f"of the width {width}" if width else conditions["ema_decay"]
    settings = ", ".join(f"{key} {how[key]}" for key in ("steps", "grid", "rtol", "atol") if key in how)
    probes = "exact trace" if how["probe"] == "exact" else f"{how['probes']} {how['probe']} probe{'s' * (how['probes'] > 1)}"
    given = f", given their {data['given']}s" if "given" in data else ""
    pixels = f"dequantised with seed {conditions['seed']}, " if how["dequantised"] else ""
    return [
        f"{summary['examples']} examples of {data['name']}, split {data['split']}{given}; checkpoint of step "
        f"{conditions['checkpoint_step']}, EMA {average}",
        f"  probability-flow ODE: {number(ode)} ({pixels}{how['solver']}, {settings}, {probes}, "
        f"t_min {how['t_min']:g}, {ode['evaluations']:.0f} evaluations)",
        f"  variational bound: {number(bound)} (L_T {bound['prior']:.4f}, between {sum(bound['terms_by_tenth']):.4f}, L_0 "
        f"{bound['decoder']:.4f}; {chain['evaluated']} of {chain['transitions']} steps, {chain['variance']} variance, "
        f"{bound['evaluations']:.0f} evaluations)",
    ]
