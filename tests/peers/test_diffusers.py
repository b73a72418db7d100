"""Tables, grids and trajectories against diffusers' schedulers, step by step, with one toy network and the same noise.

Each comparison is made twice: as published (float32, to 1e-4), and in float64 (to 1e-9; their modules are given float64 for
float32), which leaves only differences of method. Conventions that differ, and how they are matched:

* Time. Their step t is the index n - 1 of our time n/T, and what our networks are shown of it.
* The end. Their alpha after the last step is 1 (`set_alpha_to_one`, final sigma "zero"): our last="denoise". Where it is
  alpha_bar_0 (`set_alpha_to_one=False`, "sigma_min") they end at n = 1: our last="stop" on a grid that ends there.
* Spacing. trailing, and leading where N divides T, are the same (elsewhere their stride is an integer, ours real); linspace is
  our `uniform`; `steps_offset` shifts n. At halves trailing differs by one where np.arange's noise decides theirs. DPM-Solver
  takes N + 1 points of linspace and leading, and drops the last. Euler and Heun leave linspace unrounded, with sigma / alpha
  linear between two steps (with us log alpha is).
* Variance. fixed_small, fixed_large and learned_range are ours; their learned is the variance
  itself, ours its logarithm. In place of the logarithm of a variance of 0 they put that of 1e-20, we the next pair's.
* Clipping. Their DDIM keeps eps, or with `use_clipped_model_output` derives it again, as their Heun does.
* Predictions. epsilon, sample, v_prediction, flow_prediction are our eps, x0, v, velocity. EDM's is the same.
* Space. Euler, Euler ancestral and Heun hold y = x / alpha and step in z = sigma / alpha; `scale_model_input` makes x of y. So
  Euler is our `ddim` on x, or our `euler` on (y, z) with the EDM process; Heun is our `heun` on (y, z), on x another method.
  They start from z_max times noise (linspace, trailing), a chain from sqrt(1 + z_max^2) times it; here all start alike.
* Karras. They keep sigma off the steps and show the network a time between two, found by log sigma (DPM-Solver rounds it); our
  grids move to the nearest step. Here ours runs at their sigma and is told their time. `use_lu_lambdas` is our `log_snr`.
* Order. A last step to sigma = 0 is first-order in both DPM-Solvers; with `lower_order_final` theirs is to sigma_min too, where
  there are fewer than 15 steps.
* PNDM. With v they average v of different times and make eps of the mean; we average eps, as the paper does. Not compared.
* Starts. 3M and DEIS-3 are ours as `published`; by default ours start better. DEIS and UniPC end at sigma_min, UniPC at 0 too.
* Churn. EDM's schedulers add the noise after the network has seen the state, so that its estimate is of another state and
  time than the step's; tests/diffusion/test_langevin_and_churn.py has the paper's algorithm instead.
* Zero terminal SNR. DPM-Solver has alpha_bar = 2^-24 where the table has 0.
* Flow matching shows the network 1000 t, we 999 t.

What is wrong on their side is shown at the end of the file.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from ddpm_jax.diffusion.betas import BETAS, rescale_zero_terminal_snr
from ddpm_jax.diffusion.grids import GRIDS
from ddpm_jax.diffusion.predictions import PREDICTIONS, network_denoiser
from ddpm_jax.diffusion.process import add_noise
from ddpm_jax.diffusion.processes import PROCESSES, from_betas
from ddpm_jax.diffusion.samplers import SAMPLERS, At
from ddpm_jax.diffusion.transforms import CLIPS

torch = pytest.importorskip("torch")
peers = pytest.importorskip("diffusers.schedulers")
sde_vp = pytest.importorskip("diffusers.schedulers.deprecated.scheduling_sde_vp")

T, N, CHANNELS = 1000, 10, 3
RANDOM = np.random.default_rng(0)
START, NOISE = RANDOM.normal(size=(4, CHANNELS)), RANDOM.normal(size=(T, 4, CHANNELS))
MIX, RATES = 0.5 * RANDOM.normal(size=(CHANNELS, 2 * CHANNELS)), np.linspace(0.05, 0.3, 2 * CHANNELS)


# ------------------------------------------------------------------------------------------------ two sides, two precisions


class Double:
    """A module in which float32 is float64."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        return getattr(self.module, "float64" if name == "float32" else name)


@pytest.fixture(params=["published", "double"])
def tolerance(request):
    if request.param == "published":
        yield 1e-4
        return
    modules = [module for name, module in sys.modules.items() if name.startswith("diffusers.schedulers.")]
    with contextlib.ExitStack() as stack:
        for module in modules:
            for name in {"torch", "np"} & set(vars(module)):
                stack.enter_context(mock.patch.object(module, name, Double(getattr(module, name))))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        stack.enter_context(jax.enable_x64(True))
        yield 1e-9


def tensor(x):
    return torch.tensor(np.array(x), dtype=torch.get_default_dtype())


def network(x, time):
    """A fixed function of x [B, C] and time [] or [B], bounded as a denoiser's: C outputs and C of a raw variance."""
    x, time = np.asarray(x, np.float64), np.broadcast_to(np.asarray(time, np.float64), len(x))[:, None]
    mixed, fresh = np.tanh(x @ MIX + np.cos(RATES * time)), np.exp(-5 * (time / T) ** 2)
    return np.concatenate([np.sqrt(1 - fresh**2) * x + fresh * mixed[:, :CHANNELS], mixed[:, CHANNELS:]], 1)


def our_denoiser(process, prediction="eps", learned=False, clip="none"):
    def apply(x, time):
        return jnp.asarray(network(x, time)[:, : CHANNELS * (1 + learned)], x.dtype)

    denoise = network_denoiser(apply, process, PREDICTIONS[prediction](), learned_variance=learned)
    return CLIPS[clip](denoise, process)


def in_ratio(denoise, process):
    """The denoiser of y = x / alpha at z = sigma / alpha: the same x0 and eps, since y = x0 + z eps."""

    def of_ratio(y, z):
        t = process.inverse_log_snr(-2 * jnp.log(z))
        return denoise(process.alpha(t) * y, t)

    return of_ratio


def our_states(sampler, denoise, process, x, starts, ends, first_order=()):
    """The states after each of the steps starts[i] -> ends[i]."""
    states, memory = [], sampler.init(x)
    for i, (t, s) in enumerate(zip(starts, ends, strict=True)):
        at = At(t, s, 0 if i in first_order else i, len(starts), lambda _, i=i: jnp.asarray(NOISE[i], float), None)
        step = sampler.start if i < sampler.starts else sampler.step
        x, _, memory = step(denoise, process, x, memory, at)
        states.append(x)
    return states


def peer_states(scheduler, x, *, outputs=CHANNELS, read=np.array, shown=None, **arguments):
    """The states after each of the scheduler's steps; the network is shown `shown` in place of its times."""
    states, module = [], sys.modules[type(scheduler).__module__]
    scale = getattr(scheduler, "scale_model_input", lambda x, _: x)
    for i, t in enumerate(scheduler.timesteps):
        output = tensor(read(network(scale(x, t), t if shown is None else shown[i])[:, :outputs]))
        draw = mock.Mock(return_value=tensor(NOISE[len(states)]))
        with mock.patch.object(module, "randn_tensor", draw, create=True):
            x = scheduler.step(output, t, x, **arguments).prev_sample
        if getattr(scheduler, "state_in_first_order", True) or i + 1 == len(scheduler.timesteps):
            states.append(x.numpy())
    return states


def agree(ours, theirs, tolerance, name=""):
    difference = np.abs(np.asarray(ours) - np.asarray(theirs)).max()
    print(f"{name:34} {difference:.1e} (tolerance {tolerance:.0e})")
    assert difference < tolerance, name


# ------------------------------------------------------------------------------------------------ tables and grids

TABLES = {
    "linear": ("linear", {}),
    "quadratic": ("scaled_linear", {}),
    "scaled_linear": ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
    "cosine": ("squaredcos_cap_v2", {}),
    "sigmoid": ("sigmoid", {}),
}


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_tables(name, zero_terminal_snr, tolerance):
    schedule, ends = TABLES[name]
    scheduler = peers.DDPMScheduler(beta_schedule=schedule, rescale_betas_zero_snr=zero_terminal_snr, **ends)
    process = PROCESSES[name](zero_terminal_snr=zero_terminal_snr)
    index = np.arange(T)
    agree(process.alpha((index + 1) / T) ** 2, scheduler.alphas_cumprod, tolerance * 1e-2, name)
    x0, eps = np.random.default_rng(1).normal(size=(2, T, CHANNELS))
    t, (x0, eps) = jnp.asarray((index + 1) / T, float), jnp.asarray([x0, eps], float)
    arguments = tensor(x0), tensor(eps), torch.tensor(index)
    agree(add_noise(process, x0, eps, t), scheduler.add_noise(*arguments), tolerance, f"{name}, x_t")
    agree(PREDICTIONS["v"]().target(process, x0, eps, t), scheduler.get_velocity(*arguments), tolerance, f"{name}, v")


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 30, 48, 50, 176, 250, 333, 999, 1000])
@pytest.mark.parametrize("ours,theirs", [("uniform", "linspace"), ("leading", "leading"), ("trailing", "trailing")])
def test_grids(ours, theirs, steps):
    """Theirs of leading has an integer stride, ours a real one: alike where the one is the other."""
    if theirs == "leading" and T % steps:
        return
    scheduler = peers.DDPMScheduler(timestep_spacing=theirs)
    scheduler.set_timesteps(steps)
    found = np.rint(np.asarray(GRIDS[ours](PROCESSES["linear"](), steps=steps)) * T) - 1
    exact = {"linspace": np.linspace(T - 1, 0, steps), "trailing": T - np.arange(steps) * T / steps}.get(theirs, found)
    tie = np.isclose(exact % 1, 0.5)
    difference = np.abs(found - scheduler.timesteps.numpy())
    assert difference[~tie].max() == 0 and difference.max() <= 1


# ------------------------------------------------------------------------------------------------ trajectories


def indices(*values):
    return lambda process: (jnp.asarray(values, float) + 1) / process.num_steps


def grid(name, steps=N, **parameters):
    return lambda process: GRIDS[name](process, steps=steps, **parameters)


def without_last(name, steps=N):
    return lambda process: GRIDS[name](process, steps=steps + 1)[:-1]


def then_first(times):
    """These times and n = 1."""
    return lambda process: jnp.append(times(process), 1 / process.num_steps)


def at_ratios(choose):
    """The times at which sigma / alpha is choose(that of all steps)."""

    def times(process):
        of_steps = np.exp(-0.5 * np.asarray(process.log_snr(indices(*range(T))(process))))
        return process.inverse_log_snr(-2 * jnp.log(choose(of_steps)))

    return times


def over_range(name):
    """sigma / alpha by a grid of ours, over the range of the table."""
    return at_ratios(lambda z: GRIDS[name](PROCESSES["edm"](sigma_min=z[0], sigma_max=z[-1]), steps=N))


class Row(NamedTuple):
    """A scheduler of theirs and what it is with us. Spaces: "x"; or "y" for x / alpha, which is also x where alpha = 1."""

    peer: Callable
    sampler: Callable
    times: Callable  # of the process
    process: Callable
    prediction: str
    learned: bool = False
    clip: str = "none"
    last: str = "denoise"
    space: str = "x"
    peer_space: str = "x"
    told: bool = False  # our network is shown their times
    rounding: float = 1.0  # a factor of the tolerance
    first_order: tuple = ()  # steps before which our sampler forgets its history
    set_timesteps: dict = {"num_inference_steps": N}
    arguments: dict = {}  # of `peer_states`


TYPES = {"eps": "epsilon", "x0": "sample", "v": "v_prediction", "velocity": "flow_prediction"}


def maker(peer, process, defaults, **more):
    """row(sampler, times, config, **fields of Row) for a scheduler that has prediction types."""

    def make(sampler, times, config, prediction="eps", **fields):
        config = defaults | {"prediction_type": TYPES[prediction]} | config
        return Row(partial(peer, **config), sampler, times, **{"process": process, "prediction": prediction} | more | fields)

    return make


class PNDM(peers.PNDMScheduler):
    @property
    def state_in_first_order(self):
        """Whether the last step ended a transition."""
        return self.counter != 1 if self.config.skip_prk_steps else self.counter > 12 or self.counter % 4 == 0


LINEAR, LATENT = PROCESSES["linear"], PROCESSES["scaled_linear"]
PUBLISHED_LATENT = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ddpm = maker(peers.DDPMScheduler, LINEAR, {"clip_sample": False})
ddim = maker(peers.DDIMScheduler, LINEAR, {"clip_sample": False})
dpm = maker(peers.DPMSolverMultistepScheduler, LATENT, PUBLISHED_LATENT)
deis = maker(peers.DEISMultistepScheduler, LATENT, PUBLISHED_LATENT)
unipc = maker(peers.UniPCMultistepScheduler, LATENT, PUBLISHED_LATENT)
pndm = maker(PNDM, LATENT, PUBLISHED_LATENT | {"set_alpha_to_one": True}, last="stop")
euler = maker(peers.EulerDiscreteScheduler, LATENT, PUBLISHED_LATENT, peer_space="y")
euler_ancestral = maker(peers.EulerAncestralDiscreteScheduler, LATENT, PUBLISHED_LATENT, peer_space="y")
heun = maker(peers.HeunDiscreteScheduler, LATENT, PUBLISHED_LATENT, space="y", peer_space="y")


def edm(peer, sampler, times, **config):
    return Row(partial(peer, **config), sampler, times, PROCESSES["edm"], "edm", space="y", peer_space="y")


def flow(peer, sampler, sigmas, **fields):
    process = partial(PROCESSES["rectified_flow"], t_max=1.0)
    return Row(peer, sampler, lambda _: jnp.asarray(sigmas, float), process, "velocity", told=True, **fields)


def to_zero(times):
    return lambda process: jnp.append(times(process), 0.0)


def almost_zero_terminal():
    betas = rescale_zero_terminal_snr(BETAS["scaled_linear"]())
    betas[-1] = 1 - 2**-24 / np.prod(1 - betas[:-1])
    return from_betas(betas)


def at_nearest(points, values, t):
    return values[jnp.abs(points - t).argmin()]


def exponentiated(output):
    return np.concatenate([output[:, :CHANNELS], np.exp(output[:, CHANNELS:])], 1)


def order(name, order, **parameters):
    return partial(SAMPLERS[name], order=order, **parameters)


ANCESTRAL, DDIM, EULER, HEUN, DPMPP = (SAMPLERS[name] for name in ("ancestral", "ddim", "euler", "heun", "dpmpp_2m"))
VARIANCES = ("fixed_small", "fixed_large", "learned_range", "learned")
SMALL, LARGE, RANGE, LEARNED = (partial(ANCESTRAL, variance=name) for name in VARIANCES)
DPMPP_3M = partial(SAMPLERS["dpmpp_3m"], published=True)
LEADING, TRAILING, LINSPACE = grid("leading"), grid("trailing"), grid("uniform")
KARRAS, UNROUNDED = over_range("karras"), at_ratios(lambda z: np.interp(np.linspace(T - 1, 0, N), np.arange(T), z))
ZERO_TERMINAL = partial(LINEAR, zero_terminal_snr=True)
CUSTOM = (999, 740, 500, 123, 20, 0)
FLOW = np.array([1.0, 0.95, 0.8, 0.6, 0.3, 0.1, 0.02])
SHIFTED = 3 * FLOW / (1 + 2 * FLOW)

ROWS = {
    "DDPM leading": ddpm(SMALL, LEADING, {}),
    "DDPM trailing": ddpm(SMALL, TRAILING, {"timestep_spacing": "trailing"}),
    "DDPM linspace": ddpm(SMALL, LINSPACE, {"timestep_spacing": "linspace"}),
    "DDPM offset": ddpm(SMALL, indices(*range(901, 0, -100)), {"steps_offset": 1}),
    "DDPM custom times": ddpm(SMALL, indices(*CUSTOM), {}, set_timesteps={"timesteps": CUSTOM}),
    # After 1000 steps float32 is 4e-5 from float64 with us, 1.8e-4 with them, who take 1 - alpha_bar_t / alpha_bar_s as it is.
    "DDPM all steps": ddpm(
        LARGE, grid("uniform", T), {"variance_type": "fixed_large"}, set_timesteps={"num_inference_steps": T}, rounding=3.0
    ),
    "DDPM large": ddpm(LARGE, LEADING, {"variance_type": "fixed_large"}),
    "DDPM small_log": ddpm(SMALL, LEADING, {"variance_type": "fixed_small_log"}),
    "DDPM learned_range": ddpm(RANGE, LEADING, {"variance_type": "learned_range"}, learned=True),
    "DDPM learned": ddpm(LEARNED, LEADING, {"variance_type": "learned"}, learned=True, arguments={"read": exponentiated}),
    "DDPM clipped": ddpm(SMALL, LEADING, {"clip_sample": True}, clip="keep_eps"),
    "DDPM x0": ddpm(SMALL, LEADING, {}, "x0"),
    "DDPM v": ddpm(SMALL, LEADING, {}, "v"),
    "DDPM zero terminal SNR": ddpm(
        LARGE,
        LINSPACE,
        {"rescale_betas_zero_snr": True, "timestep_spacing": "linspace", "variance_type": "fixed_large"},
        "v",
        process=ZERO_TERMINAL,
    ),
    "DDIM leading": ddim(DDIM, LEADING, {}),
    "DDIM trailing": ddim(DDIM, TRAILING, {"timestep_spacing": "trailing"}),
    "DDIM to alpha_bar_0": ddim(
        DDIM, then_first(indices(*range(901, 0, -100))), {"set_alpha_to_one": False, "steps_offset": 1}, last="stop"
    ),
    "DDIM eta 0.5": ddim(partial(DDIM, eta=0.5), LEADING, {}, arguments={"eta": 0.5}),
    "DDIM eta 1": ddim(partial(DDIM, eta=1.0), LEADING, {}, arguments={"eta": 1.0}),
    "DDIM eta 1 as DDPM small": ddim(SMALL, LEADING, {}, arguments={"eta": 1.0}),
    "DDIM clipped": ddim(DDIM, LEADING, {"clip_sample": True}, clip="keep_eps"),
    "DDIM clipped, new eps": ddim(
        partial(DDIM, eta=0.5),
        LEADING,
        {"clip_sample": True},
        clip="rederive",
        arguments={"eta": 0.5, "use_clipped_model_output": True},
    ),
    "DDIM x0": ddim(DDIM, LEADING, {}, "x0"),
    "DDIM v": ddim(DDIM, LEADING, {}, "v"),
    "DDIM zero terminal SNR": ddim(
        DDIM, TRAILING, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "v", process=ZERO_TERMINAL
    ),
    "DPM++ linspace": dpm(DPMPP, without_last("uniform"), {}),
    "DPM++ leading": dpm(DPMPP, indices(*range(900, 0, -90)), {"timestep_spacing": "leading"}),
    "DPM++ trailing": dpm(DPMPP, TRAILING, {"timestep_spacing": "trailing"}),
    "DPM++ 20 steps": dpm(DPMPP, without_last("uniform", 20), {}, set_timesteps={"num_inference_steps": 20}),
    "DPM++ custom times": dpm(DPMPP, indices(*CUSTOM), {}, set_timesteps={"timesteps": CUSTOM}),
    "DPM++ to sigma_min": dpm(
        DPMPP, grid("uniform", N + 1), {"final_sigmas_type": "sigma_min", "lower_order_final": False}, last="stop"
    ),
    "DPM++ lower_order_final": dpm(
        DPMPP, grid("uniform", N + 1), {"final_sigmas_type": "sigma_min"}, last="stop", first_order=(N - 1,)
    ),
    "DPM++ Karras": dpm(DPMPP, KARRAS, {"use_karras_sigmas": True}, told=True),
    "DPM++ Lu": dpm(DPMPP, over_range("log_snr"), {"use_lu_lambdas": True}, told=True),
    "DPM++ x0": dpm(DPMPP, without_last("uniform"), {}, "x0"),
    "DPM++ v": dpm(DPMPP, without_last("uniform"), {}, "v"),
    "DPM++ zero terminal SNR": dpm(
        DPMPP, TRAILING, {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}, "v", process=almost_zero_terminal
    ),
    "DPM++ order 1": dpm(DDIM, without_last("uniform"), {"solver_order": 1}),
    "SDE-DPM++ order 1": dpm(SMALL, without_last("uniform"), {"solver_order": 1, "algorithm_type": "sde-dpmsolver++"}),
    "SDE-DPM++": dpm(SAMPLERS["sde_dpmpp_2m"], without_last("uniform"), {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ 3M": dpm(DPMPP_3M, without_last("uniform"), {"solver_order": 3, "lower_order_final": False}),
    "DPM++ 3M v, 20 steps": dpm(
        DPMPP_3M, without_last("uniform", 20), {"solver_order": 3}, "v", set_timesteps={"num_inference_steps": 20}
    ),
    **{
        f"UniPC-{k}": unipc(
            order("unipc", k),
            grid("uniform", N + 1),
            {"solver_order": k, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
            last="stop",
        )
        for k in (1, 2, 3)
    },
    "UniPC-2 to zero": unipc(order("unipc", 2), without_last("uniform"), {}),
    "UniPC-2 v": unipc(order("unipc", 2), without_last("uniform"), {}, "v"),
    "UniP-2": unipc(order("unipc", 2, corrector=False), without_last("uniform"), {"disable_corrector": tuple(range(N))}),
    **{
        f"DEIS-{k}": deis(
            order("deis", k, published=True),
            grid("uniform", N + 1),
            {"solver_order": k, "lower_order_final": False},
            last="stop",
        )
        for k in (1, 2, 3)
    },
    "PNDM": pndm(SAMPLERS["pndm"], to_zero(LEADING), {}),
    "PLMS": pndm(SAMPLERS["plms"], to_zero(LEADING), {"skip_prk_steps": True}),
    "Euler leading as DDIM": euler(DDIM, LEADING, {"timestep_spacing": "leading"}),
    "Euler trailing as DDIM": euler(DDIM, TRAILING, {"timestep_spacing": "trailing"}),
    "Euler trailing": euler(EULER, TRAILING, {"timestep_spacing": "trailing"}, space="y"),
    "Euler linspace": euler(EULER, UNROUNDED, {}, space="y", told=True),
    "Euler custom times": euler(EULER, indices(*CUSTOM), {}, space="y", set_timesteps={"timesteps": CUSTOM}),
    "Euler Karras": euler(EULER, KARRAS, {"use_karras_sigmas": True}, space="y", told=True),
    "Euler to sigma_min": euler(
        DDIM, then_first(TRAILING), {"timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"}, last="stop"
    ),
    "Euler x0": euler(EULER, TRAILING, {"timestep_spacing": "trailing"}, "x0", space="y"),
    "Euler v": euler(EULER, TRAILING, {"timestep_spacing": "trailing"}, "v", space="y"),
    "Euler ancestral as DDPM small": euler_ancestral(SMALL, TRAILING, {"timestep_spacing": "trailing"}),
    "Heun trailing": heun(HEUN, TRAILING, {"timestep_spacing": "trailing"}),
    "Heun linspace": heun(HEUN, UNROUNDED, {}, told=True),
    "Heun custom times": heun(HEUN, indices(*CUSTOM), {}, set_timesteps={"timesteps": CUSTOM}),
    "Heun Karras": heun(HEUN, KARRAS, {"use_karras_sigmas": True}, told=True),
    "Heun clipped": heun(HEUN, TRAILING, {"timestep_spacing": "trailing", "clip_sample": True}, clip="rederive"),
    "Heun x0": heun(HEUN, TRAILING, {"timestep_spacing": "trailing"}, "x0"),
    "Heun v": heun(HEUN, TRAILING, {"timestep_spacing": "trailing"}, "v"),
    "EDM Euler": edm(peers.EDMEulerScheduler, EULER, grid("karras")),
    "EDM Euler as DDIM": edm(peers.EDMEulerScheduler, DDIM, grid("log_snr"), sigma_schedule="exponential"),
    "EDM DPM++": edm(peers.EDMDPMSolverMultistepScheduler, DPMPP, grid("karras")),
    "flow Euler": flow(peers.FlowMatchEulerDiscreteScheduler, EULER, FLOW, set_timesteps={"sigmas": FLOW}),
    "flow Euler as DDIM": flow(peers.FlowMatchEulerDiscreteScheduler, DDIM, FLOW, set_timesteps={"sigmas": FLOW}),
    "flow Euler shifted": flow(
        partial(peers.FlowMatchEulerDiscreteScheduler, shift=3.0),
        EULER,
        SHIFTED,
        set_timesteps={"sigmas": FLOW},
    ),
    "flow Heun": flow(peers.FlowMatchHeunDiscreteScheduler, HEUN, np.linspace(1, 0.001, N)),
    "flow DPM++": flow(
        partial(peers.DPMSolverMultistepScheduler, use_flow_sigmas=True, prediction_type="flow_prediction"),
        DPMPP,
        np.linspace(0.999, 0, N + 1)[:-1],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_trajectory(name, tolerance):
    row = ROWS[name]
    scheduler, process = row.peer(), row.process()
    scheduler.set_timesteps(**row.set_timesteps)
    times = row.times(process)
    if row.told:
        told = np.append(scheduler.timesteps[:1], scheduler.timesteps[1 :: scheduler.order])
        assert np.abs(told - (T * times - 1)).max() < 1.001
        process = dataclasses.replace(process, time_input=Partial(at_nearest, times, jnp.asarray(told, float)))
    denoise, z = our_denoiser(process, row.prediction, row.learned, row.clip), jnp.exp(-0.5 * process.log_snr(times))
    if row.space == "y" and process.num_steps:
        denoise, process, times = in_ratio(denoise, process), PROCESSES["edm"](), z
    widths = {"x": np.ones(len(z) + 1), "y": np.sqrt(1 + np.append(z, 0.0) ** 2)}  # what brings a state to unit variance
    width, peer_width = widths[row.space][:, None, None], widths[row.peer_space][:, None, None]
    x = jnp.asarray(START * width[0], float)
    states = our_states(row.sampler(), denoise, process, x, times[:-1], times[1:], row.first_order)
    if row.last == "denoise":
        states.append(denoise(states[-1], times[-1]).x0)
    outputs = CHANNELS * (1 + row.learned)
    theirs = peer_states(scheduler, tensor(START * peer_width[0]), outputs=outputs, **row.arguments)
    count = slice(1, len(theirs) + 1)
    agree(states / width[count], theirs / peer_width[count], row.rounding * tolerance, name)


def test_sde_steps(tolerance):
    """Single steps of the reverse SDE: on VE theirs has sigma_n^2 - sigma_{n-1}^2 for g^2 dt, the ancestral step with the large
    variance on the ladder; on VP it is `euler_maruyama`, but 1/N long on a grid spaced by (1 - 0.01) / (N - 1)."""
    ladder, vp = PROCESSES["ncsn"](steps=N, sigma_max=5.0), PROCESSES["vp"]()
    their_ladder, their_vp = peers.ScoreSdeVeScheduler(N, sigma_max=5.0), sde_vp.ScoreSdeVpScheduler(sampling_eps=0.01)
    their_vp.set_timesteps(N)
    x, start, noise = jnp.asarray(START, float), tensor(START), tensor(NOISE[0])
    with (
        mock.patch.object(sys.modules[peers.ScoreSdeVeScheduler.__module__], "randn_tensor", return_value=noise),
        mock.patch.object(sde_vp, "randn_tensor", return_value=noise),
    ):
        for i in range(1, N):
            t, s = jnp.asarray([i + 1, i], float) / N
            score = -network(START, i)[:, :CHANNELS] / ladder.sigma(t)
            theirs = their_ladder.step_pred(tensor(score), their_ladder.timesteps[-1 - i], start).prev_sample
            agree(our_states(LARGE(), our_denoiser(ladder), ladder, x, [t], [s])[0], theirs, tolerance, "VE")
        for t in their_vp.timesteps:
            theirs, _ = their_vp.step_pred(tensor(network(START, 999 * t)[:, :CHANNELS]), start, t)
            t = jnp.asarray(t.numpy())
            ours = our_states(SAMPLERS["euler_maruyama"](), our_denoiser(vp), vp, x, [t], [t - 1 / N])[0]
            agree(ours, theirs, tolerance, "VP")


# ------------------------------------------------------------------------------------------------ what is wrong on their side


@pytest.mark.parametrize("spacing,ours,steps", [("linspace", "uniform", 16), ("trailing", "trailing", 30)])
def test_ddim_leaves_its_grid(spacing, ours, steps, tolerance):
    """DDIM steps from t to t - T // N, not to its grid's next time: with linspace, and with trailing if N does not divide T.
    So x is at one time, and the network is shown another. On a table of the grid's times alone T // N = 1: it is right. (DDPM
    looks up the next time of its grid.)"""
    process, x = LINEAR(), jnp.asarray(START, float)
    times, denoise = grid(ours, steps)(process), our_denoiser(process)
    scheduler = peers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    theirs = peer_states(scheduler, tensor(START))
    off = our_states(DDIM(), denoise, process, x, times, jnp.maximum(times - T // steps / T, 0.0))
    agree(off, theirs, tolerance, "DDIM, off its grid")

    right = our_states(DDIM(), denoise, process, x, times, jnp.append(times[1:], 0.0))
    assert np.abs(np.asarray(right) - np.asarray(theirs)).max() > 0.01
    alpha_bar = np.asarray(process.alpha(times[::-1]), np.float64) ** 2
    betas = 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])
    respaced = peers.DDIMScheduler(num_train_timesteps=steps, trained_betas=betas, clip_sample=False)
    respaced.set_timesteps(steps)
    agree(right, peer_states(respaced, tensor(START), shown=scheduler.timesteps), tolerance, "DDIM, on its grid")


def test_ddpm_adds_noise_to_its_result(tolerance):
    """DDPM draws noise wherever t > 0: in its last step too, where the spacing (trailing) or an offset ends above t = 0."""
    process, x = LINEAR(), jnp.asarray(START, float)
    times = TRAILING(process)
    scheduler = peers.DDPMScheduler(timestep_spacing="trailing", variance_type="fixed_large", clip_sample=False)
    scheduler.set_timesteps(N)
    theirs = peer_states(scheduler, tensor(START))
    ours = our_states(LARGE(), our_denoiser(process), process, x, times, jnp.append(times[1:], 0.0))
    agree(ours, theirs, tolerance, "DDPM, noise to the end")
    noise = theirs[-1] - our_denoiser(process)(jnp.asarray(theirs[-2]), times[-1]).x0
    np.testing.assert_allclose(noise, process.sigma(times[-1]) * NOISE[N - 1], atol=1e-5)


def timesteps(peer, steps, **config):
    scheduler = peer(**config)
    scheduler.set_timesteps(steps)
    return scheduler


FAULTS = {
    "trailing: rounding of np.arange gives a step too many, index -1, the noisiest of the table": lambda: (
        list(timesteps(peers.DDPMScheduler, 463, timestep_spacing="trailing").timesteps[[0, 463]]) == [999, -1]
    ),
    "linspace: one step starts at the data's end": lambda: (
        list(timesteps(peers.DDPMScheduler, 1, timestep_spacing="linspace").timesteps) == [0]
    ),
    "DDPM: fixed_large_log is the square root of a logarithm": lambda: np.isnan(
        peer_states(timesteps(peers.DDPMScheduler, N, variance_type="fixed_large_log"), tensor(START))[0]
    ).all(),
    "Euler: log_linear gives a sigma too many, so that the last step does not reach 0": lambda: (
        timesteps(peers.EulerDiscreteScheduler, N, interpolation_type="log_linear").sigmas[N] > 0
    ),
    "flow matching: the smallest sigma is shifted twice": lambda: np.isclose(
        timesteps(peers.FlowMatchEulerDiscreteScheduler, N, shift=3.0).sigmas[-2], 3 * (s := 3e-3 / 1.002) / (1 + 2 * s)
    ),
    "EDM Euler: given sigmas are taken for places on the Karras curve": lambda: (
        not np.allclose(_edm_sigmas(torch.tensor([80.0, 10.0, 1.0])), [80.0, 10.0, 1.0, 0.0])
    ),
}


def _edm_sigmas(sigmas):
    scheduler = peers.EDMEulerScheduler()
    scheduler.set_timesteps(sigmas=sigmas)
    return scheduler.sigmas


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault):
    """Not a merit of ours: where one of these fails, they have mended it."""
    assert FAULTS[fault]()
