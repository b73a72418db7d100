"""Error against network evaluations for every sampler of the table, on a Gaussian whose flow and moments are known.

    python -m experiments.sampler_orders.run

Writes orders.png beside this file and prints the table of slopes. README.md says what is measured.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.grids import log_snr
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import SAMPLERS, At

PROCESS = "vp"
STEPS = (8, 16, 32, 64, 128, 256, 512)
FIT = 4  # the slope is that of the last so many points


def is_stochastic(sampler, data, process) -> bool:
    """Whether a step depends on its noise."""
    x, t, s = jnp.ones((1, 2)), jnp.asarray(0.5), jnp.asarray(0.4)
    ends = [
        sampler.step(oracle.denoiser(data, process), process, x, sampler.init(x), At(t, s, 0, 1, lambda _, z=z: z * x))[0]
        for z in (0.0, 1.0)
    ]
    return not np.allclose(*ends)


def path_error(sampler, data, process, times) -> tuple[float, int]:
    """RMS distance to the exact flow at times[-1], and the evaluations, from 64 points of p_{t_max}."""
    keys = sample_keys(0, jnp.arange(64))
    start, _ = oracle.draw(data, process, times[0], keys)
    end = sample(sampler, oracle.denoiser(data, process), process, times, keys, (2,), x=start, last="stop")
    exact = oracle.flow(data, process, start, times[0], times[-1])
    return float(jnp.sqrt(jnp.mean((end.x - exact) ** 2))), int(end.evaluations)


def moment_error(sampler, data, process, times) -> tuple[float, int]:
    """Largest error of mean and covariance at times[-1], propagated exactly from those of p_{t_max}, and the evaluations."""
    start = oracle.moments(data, process, times[0])
    reached = oracle.propagate(sampler, oracle.denoiser(data, process), process, times, *start)
    exact = oracle.moments(data, process, times[-1])
    error = max(float(jnp.abs(a - b).max()) for a, b in zip(reached, exact, strict=True))
    keys = sample_keys(0, jnp.arange(1))
    counted = sample(sampler, oracle.denoiser(data, process), process, times, keys, (2,), last="stop")
    return error, int(counted.evaluations)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    process = PROCESSES[PROCESS]()
    data = oracle.gaussian([0.5, -0.3], [[0.3, 0.1], [0.1, 0.2]])
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for name, make in SAMPLERS.items():
        sampler = make()
        stochastic = is_stochastic(sampler, data, process)
        measure = moment_error if stochastic else path_error
        errors, evaluations = zip(
            *(measure(sampler, data, process, log_snr(process, steps=steps + 1)) for steps in STEPS), strict=True
        )
        slope = -np.polyfit(np.log(evaluations[-FIT:]), np.log(errors[-FIT:]), 1)[0]
        panels[int(stochastic)].loglog(evaluations, errors, marker="o", markersize=3, label=f"{name}: {slope:.2f}")
        kind = "moments" if stochastic else "path"
        at_512 = errors[evaluations.index(512)]
        print(f"{name:16s} {kind:8s} slope {slope:.2f}  error at 512 evaluations {at_512:.1e}", flush=True)
    titles = "deterministic: distance to the exact flow", "stochastic: error of mean and covariance"
    for panel, title in zip(panels, titles, strict=True):
        panel.set(xlabel="network evaluations", title=title)
        panel.grid(alpha=0.3, which="both")
        panel.legend(title="slope")
    panels[0].set_ylabel("error")
    figure.savefig(Path(__file__).parent / "orders.png", dpi=120)


if __name__ == "__main__":
    main()
