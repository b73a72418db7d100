"""What a config chooses of the kernel, and whether it goes together."""

import contextlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.construct import AUTO, arguments, construct
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.keys import Purpose, key_of
from ddpm_jax.diffusion.losses import LOSSES, WEIGHTINGS, Loss, check_chain
from ddpm_jax.diffusion.posterior import FIXED_VARIANCES
from ddpm_jax.diffusion.predictions import PREDICTIONS, PredictionType, check_alpha
from ddpm_jax.diffusion.process import Process
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import check
from ddpm_jax.diffusion.samplers import BEST_GRIDS, SAMPLERS, TIME_IS_SIGMA, Sampler
from ddpm_jax.diffusion.times import TIMES, Examples, TimestepSampler


class Choices(NamedTuple):
    """What a config chooses of the kernel. grid: the sampler's times."""

    process: Process
    prediction: PredictionType
    loss: Loss
    times: TimestepSampler
    sampler: Sampler
    grid: jax.Array


@contextlib.contextmanager
def _about(*keys):
    """A ValueError raised within is of these keys, and sections of them: `config.validate` names them."""
    try:
        yield
    except ValueError as error:
        error.keys = keys
        raise


def best_grid(config) -> str:
    """The name of the sampler's own grid on the process: of `BEST_GRIDS`; uniform where log-SNR has no end at t_max."""
    if config.process.name in TIME_IS_SIGMA:
        return "log_snr"
    best = BEST_GRIDS.get(config.sampler.name, "uniform")  # of one from elsewhere
    if best == "uniform":
        return best
    process = construct(PROCESSES, config.process)
    with jax.ensure_compile_time_eval():
        return "uniform" if float(process.alpha(process.t_max)) == 0 else best


def spacing_of(config) -> str:
    """The name of the grid: config.sampler.grid; for AUTO, `best_grid`."""
    return best_grid(config) if config.sampler.grid == AUTO else config.sampler.grid


def choose(config) -> Choices:
    """Builds it. Raises ValueError where the choices do not go together, with the keys concerned as its `keys`."""
    with _about("process."):
        process = construct(PROCESSES, config.process)
    with _about("process.", "prediction.name"):
        prediction = construct(PREDICTIONS, config.prediction)
        check_alpha(process, prediction)
    with _about("process.", "loss.name", "loss.variance"):
        loss = construct(LOSSES, dict(config.loss) | {"weighting": construct(WEIGHTINGS, config.loss, choice="weighting")})
        check_chain(process, loss)
    with _about("prediction.name", "prediction.sigma_data", "loss.weighting", "loss.sigma_data"):
        of_network = arguments(PREDICTIONS[config.prediction.name], config.prediction).get("sigma_data")
        of_loss = arguments(WEIGHTINGS[config.loss.weighting], config.loss).get("sigma_data")
        if None not in (of_network, of_loss) and of_network != of_loss:
            raise ValueError(f"prediction.sigma_data={of_network} and loss.sigma_data={of_loss} differ")
    with _about("process.", "times."):
        t_min = arguments(TIMES[config.times.name], config.times).get("t_min")
        if t_min is not None and t_min >= float(process.t_max):
            raise ValueError(f"times.t_min={t_min} leaves no time below t_max = {float(process.t_max):.9g}")
        times = construct(TIMES, config.times)
        keys = jax.eval_shape(lambda: jax.random.split(key_of(0, Purpose.TRAINING), 2))
        jax.eval_shape(lambda keys: times.draw(process, Examples(keys, jnp.arange(2), 2), times.init(process)), keys)
    with _about("loss.name", "loss.variance", "sampler.name", "sampler.variance", "sampler.steps", "process.steps"):
        _check_variance(config, process, loss)
    with _about("sampler.name"):
        sampler = construct(SAMPLERS, config.sampler)
    with _about("process.name", "process.steps", "sampler.grid", "sampler.steps"):
        spacing = spacing_of(config)
        grid = construct(GRIDS, dict(config.sampler) | {"grid": spacing}, process, choice="grid")
    with _about("process.name", "process.steps", "sampler.name", "sampler.grid", "sampler.steps", "sampler.last"):
        check(sampler, process, grid, config.sampler.last)
    with _about("sampler.grid", "sampler.steps", "sampler.times", "sampler.sections"):
        if len(grid) != config.sampler.steps:
            raise ValueError(f"the {spacing} grid has {len(grid)} times: set config.sampler.steps={len(grid)}")
    return Choices(process, prediction, loss, times, sampler, grid)


def _check_variance(config, process, loss):
    """ValueError where the sampler takes a learned variance that the loss does not teach, or steps that are not those of it."""
    name = arguments(SAMPLERS[config.sampler.name], config.sampler).get("variance")
    if name is None or name in FIXED_VARIANCES:
        return
    if name != loss.learns:
        usable = ", ".join([*FIXED_VARIANCES, *filter(None, [loss.learns])])
        raise ValueError(
            f"sampler.variance={name} is the second output of a network trained with loss.name=hybrid or vlb and loss.variance="
            f"{name}, which this is not: take one of {usable}"
        )
    if name == "learned" and config.sampler.steps != process.num_steps:
        raise ValueError(
            "sampler.variance=learned is of single steps of the chain: take all of them, sampler.steps="
            f"{process.num_steps}, or a fixed variance"
        )
