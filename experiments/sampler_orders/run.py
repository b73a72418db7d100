"""Error against network evaluations for every sampler of the table, on a Gaussian whose flow and moments are known.

    python -m experiments.sampler_orders.run

Writes orders.png beside this file and prints the table of slopes. README.md says what is measured.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import SAMPLERS, adaptive_ode, deis, dpmpp_3m, heun, unipc

PROCESS = "vp"
FIRST, LAST = -2.0, 5.0  # of log-SNR
STEPS = (8, 16, 32, 64, 128, 256, 512)
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
FIT = 4  # the slope is that of the last so many points
NOT_AFFINE = ("predictor_corrector",)  # its corrections depend on the state: no exact moments
ROWS = {name: make for name, make in SAMPLERS.items() if name not in NOT_AFFINE} | {
    "heun, s_churn 8": partial(heun, s_churn=8.0),
    "dpmpp_3m published": partial(dpmpp_3m, published=True),
    "deis 3": partial(deis, order=3),
    "unip 2": partial(unipc, order=2, corrector=False),
    "unipc 3": partial(unipc, order=3),
}


def path_error(sampler, data, process, times) -> tuple[float, int]:
    """RMS distance to the exact flow at times[-1], and the evaluations, from 64 points of p_{times[0]}."""
    keys = sample_keys(0, jnp.arange(64))
    start, _ = oracle.draw(data, process, times[0], keys)
    end = sample(sampler, oracle.denoiser(data, process), process, times, keys, (2,), x=start, last="stop")
    exact = oracle.flow(data, process, start, times[0], times[-1])
    return float(jnp.sqrt(jnp.mean((end.x - exact) ** 2))), int(end.evaluations)


def moment_error(sampler, data, process, times) -> tuple[float, int]:
    """Largest error of mean and covariance at times[-1], propagated exactly from those of p_{times[0]}, and the evaluations."""
    start = oracle.moments(data, process, times[0])
    reached = oracle.propagate(sampler, oracle.denoiser(data, process), process, times, *start, normals=10)
    exact = oracle.moments(data, process, times[-1])
    error = max(float(jnp.abs(a - b).max()) for a, b in zip(reached, exact, strict=True))
    keys = sample_keys(0, jnp.arange(1))
    counted = sample(sampler, oracle.denoiser(data, process), process, times, keys, (2,), last="stop")
    return error, int(counted.evaluations)


def measure(name, data, process):
    """[(error, evaluations)] over the steps, or over the tolerances of the adaptive sampler; whether it is stochastic."""

    def grid(steps):
        return process.inverse_log_snr(jnp.linspace(FIRST, LAST, steps + 1))

    if name == "adaptive_ode":
        return [path_error(adaptive_ode(rtol=tol, atol=tol), data, process, grid(1)) for tol in TOLERANCES], False
    sampler = ROWS[name]()
    stochastic = not sampler.noise_free
    return [(moment_error if stochastic else path_error)(sampler, data, process, grid(steps)) for steps in STEPS], stochastic


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    process = PROCESSES[PROCESS]()
    data = oracle.gaussian([0.5, -0.3], [[0.3, 0.1], [0.1, 0.2]])
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    panels = figure.subplots(1, 2)
    colours = iter([f"C{i % 10}" for i in range(len(ROWS))])
    for name in ROWS:
        measured, stochastic = measure(name, data, process)
        errors, evaluations = (np.array(column) for column in zip(*measured, strict=True))
        slope = -np.polyfit(np.log(evaluations[-FIT:]), np.log(errors[-FIT:]), 1)[0]
        told = "tolerances" if name == "adaptive_ode" else f"{slope:.2f}"
        style = {"marker": "o", "markersize": 3, "linestyle": "-" if name in SAMPLERS else "--"}
        panels[int(stochastic)].loglog(evaluations, errors, color=next(colours), label=f"{name}: {told}", **style)
        at_100 = np.exp(np.interp(np.log(100), np.log(evaluations), np.log(errors)))
        print(f"| {name} | {'moments' if stochastic else 'path'} | {told} | {at_100:.1e} |", flush=True)
    titles = "deterministic: distance to the exact flow", "stochastic: error of mean and covariance"
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xlabel="network evaluations", title=title)
        panel.grid(alpha=0.3, which="both")
        panel.legend(title="slope", fontsize=8)
    panels[0].set_ylabel("error")
    figure.savefig(Path(__file__).parent / "orders.png", dpi=110)


if __name__ == "__main__":
    main()
