"""Every sampler on one trained network, at 5, 10, 20, 50 and 100 network evaluations.

    python -m ddpm_jax.main --config=configs/toy2d.py:vp --config.data.pattern=checkerboard --workdir=runs/nfe-toy2d
    python -m ddpm_jax.main --config=configs/digits.py:vp --workdir=runs/nfe-digits
    python -m experiments.quality_vs_nfe.run runs/nfe-toy2d runs/nfe-digits

Writes toy2d.png, all samplers, and digits.png, some of them, a column per number of evaluations, and prints a table: the sliced
Wasserstein distance of 10,000 samples of the first run to fresh data, and, on a mixture of Gaussians whose denoiser is exact,
the distance of deterministic samplers to the exact flow. README.md says what is measured.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import ddpm_jax
from ddpm_jax import plots
from ddpm_jax.data import toy2d
from ddpm_jax.diffusion import oracle
from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.predictions import Prediction
from ddpm_jax.diffusion.sample import sample, sample_keys
from ddpm_jax.diffusion.samplers import SAMPLERS, At, adaptive_ode, count_evaluations
from ddpm_jax.images import to_uint8

EVALUATIONS = (5, 10, 20, 50, 100)
POINTS, PATHS, IMAGES, DIRECTIONS, SIDE = 10_000, 512, 4, 256, 160
ROWS = {
    name: {"name": name}
    for name in SAMPLERS
    if name != "adaptive_ode"  # which takes as many as its tolerance asks for
} | {
    "ancestral": {"name": "ancestral", "variance": "fixed_small"},
    "ddim, eta 1": {"name": "ddim", "eta": 1.0},
    "heun, s_churn 8": {"name": "heun", "s_churn": 8.0},
    "predictor_corrector": {"name": "predictor_corrector", "norms": "batch"},
    "annealed_langevin": {"name": "annealed_langevin", "langevin_steps": 1},
    "unipc 3": {"name": "unipc", "order": 3},
    "deis 3": {"name": "deis", "order": 3},
}
IN_PICTURES = ("ancestral", "euler_maruyama", "sde_dpmpp_2m", "ddim", "heun", "dpmpp_2m", "unipc")
HERE = Path(__file__).parent


def made(settings):
    return SAMPLERS[settings["name"]](**{key: value for key, value in settings.items() if key != "name"})


def transitions(sampler, process, evaluations) -> int:
    """The most of them that cost, with the denoising at the end, no more than these evaluations; 0 where one costs more."""

    def cost(step):
        counted, in_loop, spent = count_evaluations(lambda x, t: Prediction(x, x))  # noqa: ARG005
        x = jnp.ones((1, 2))
        step(
            counted, process, x, sampler.init(x),
            At(jnp.asarray(0.5), jnp.asarray(0.4), jnp.asarray(0), 1, lambda _: x, in_loop),
        )
        return int(spent())

    first = cost(sampler.start) if sampler.starts else 0
    left, n = evaluations - 1, 0
    while left >= (price := first if n < sampler.starts else cost(sampler.step)):
        left, n = left - price, n + 1
    return n


def sliced_wasserstein(a, b) -> float:
    """The mean over directions of the 1-Wasserstein distance of the projections of two sets [N, 2] of one size."""
    angles = np.arange(DIRECTIONS) / DIRECTIONS * np.pi
    directions = np.stack([np.cos(angles), np.sin(angles)])
    return float(np.abs(np.sort(a @ directions, 0) - np.sort(b @ directions, 0)).mean())


def path_of(process):
    """A function (sampler, n) -> RMS distance to the exact flow of a mixture, from one noise and down one grid."""
    data = oracle.mixture([[-0.9, 0.4], [0.7, -0.5], [0.3, 0.9]], [0.02 * np.eye(2)] * 3)
    keys = sample_keys(0, jnp.arange(PATHS))

    @jax.jit
    def drawn(sampler, times):
        return sample(sampler, oracle.denoiser(data, process), process, times, keys, (2,), last="stop").x

    exact = drawn(adaptive_ode(rtol=1e-6, atol=1e-6), uniform(process, steps=2))
    return lambda sampler, n: float(jnp.sqrt(jnp.mean((drawn(sampler, uniform(process, steps=n + 1)) - exact) ** 2)))


def points_at(run) -> None:
    """toy2d.png and the table."""
    pattern = run.config.data.pattern
    fresh, other = (toy2d.load(split="train", pattern=pattern, num_examples=POINTS, seed=seed) for seed in (1001, 1002))
    fresh, other = fresh.arrays["image"], other.arrays["image"]
    print(f"two sets of fresh data are {sliced_wasserstein(fresh, other):.4f} apart")
    clouds, path_distance = [], path_of(run.process)
    for name, settings in ROWS.items():
        sampler, distances, paths = made(settings), [], []
        for evaluations in EVALUATIONS:
            n = transitions(sampler, run.process, evaluations)
            if n == 0:
                clouds.append(np.full((SIDE, SIDE, 3), 255, np.uint8))
                distances.append("")
                paths.append("")
                continue
            cloud = run.sample(POINTS, **settings, **common(n), clip="none", batch_size=POINTS)
            clouds.append(plots.scatter(cloud, side=SIDE))
            distances.append(f"{sliced_wasserstein(cloud, fresh):.3f}")
            paths.append(f"{path_distance(sampler, n):.1e}" if sampler.noise_free else "")
        print(f"| {name} | {' | '.join(distances)} | {' | '.join(paths)} |", flush=True)
        forget(run)
    plots.save_png(HERE / "toy2d.png", plots.image_grid(np.stack(clouds), columns=len(EVALUATIONS)))


def images_at(run) -> None:
    """digits.png."""
    strips = []
    for name in IN_PICTURES:
        for evaluations in EVALUATIONS:
            n = transitions(made(ROWS[name]), run.process, evaluations)
            strips.append(run.sample(IMAGES, **ROWS[name], **common(n), clip="rederive"))
        print(name, flush=True)
        forget(run)
    plots.save_png(
        HERE / "digits.png", plots.image_grid(to_uint8(np.concatenate(strips)), columns=len(EVALUATIONS) * IMAGES, min_tile=48)
    )


def forget(run) -> None:
    """The programs of a row: all at once are more than a process has memory maps for."""
    run.compiled.clear()
    jax.clear_caches()


def common(n):
    return {"steps": n + 1, "grid": "uniform", "last": "denoise"}


def main() -> None:
    points, digits = (ddpm_jax.load(path) for path in sys.argv[1:])
    images_at(digits)
    points_at(points)


if __name__ == "__main__":
    main()
