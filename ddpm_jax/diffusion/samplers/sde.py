"""Samplers of the reverse SDE, equation (6) of `process`; Langevin dynamics."""

import dataclasses

import jax.numpy as jnp
from jax.tree_util import Partial

from ddpm_jax.diffusion.process import transition
from ddpm_jax.diffusion.samplers.chain import ancestral, ddim
from ddpm_jax.diffusion.samplers.core import Sampler, Static, no_memory, repeat, with_steps
from ddpm_jax.diffusion.samplers.flow import euler


def _euler_maruyama_step(denoise, process, x, memory, at):
    g2, dt = process.diffusion2(at.t), at.t - at.s
    score = -denoise(x, at.t).eps / process.sigma(at.t)
    mean = x - (process.drift(at.t) * x - g2 * score) * dt
    return mean + jnp.sqrt(g2 * dt) * at.noise(0), mean, memory


def euler_maruyama() -> Sampler:
    """x_s = x_t - (f x_t - g^2 score) dt + g sqrt(dt) z, dt = t - s: the reverse SDE, equation (6) of `process`.

    Song et al. 2021 (score SDE), section 4. Bias: first power of the step. Evaluations per step: 1.
    """
    return Sampler(
        Partial(no_memory),
        Partial(_euler_maruyama_step),
        needs_alpha="the drift of its SDE is infinite where alpha = 0",
    )


def _reverse_diffusion_step(denoise, process, x, memory, at):
    a, variance = transition(process, at.t, at.s)
    mean = (2 - a) * x - variance / process.sigma(at.t) * denoise(x, at.t).eps
    return mean + jnp.sqrt(variance) * at.noise(0), mean, memory


def reverse_diffusion() -> Sampler:
    """x_s = (2 - a) x_t + b^2 score + b z, where q(x_t | x_s) = N(a x_s, b^2 I), equation (3) of `process`.

    The reverse of the forward chain discretised in the same way (Song et al. 2021, score SDE, eq. 46); on a full table a is
    sqrt(1 - beta) and b^2 is beta, on VE a is 1 and b^2 the difference of variances. Bias: first power of the step. Evaluations
    per step: 1.
    """
    return Sampler(Partial(no_memory), Partial(_reverse_diffusion_step))


def _sample_norms(x):
    """Per example, the norm over its elements, with axes to broadcast against x."""
    return jnp.sqrt(jnp.sum(x**2, range(1, x.ndim), keepdims=True))


def _batch_norms(x):
    """The mean of the examples' norms."""
    return _sample_norms(x).mean()


NORMS = {"sample": _sample_norms, "batch": _batch_norms}


def _corrected_step(inner, norms, snr, corrector_steps, denoise, process, x, memory, at):
    count = corrector_steps.value
    for j in range(count):
        score, noise = -denoise(x, at.t).eps / process.sigma(at.t), at.noise(j)
        size = 2 * (snr * norms(noise) / norms(score)) ** 2
        x = x + size * score + jnp.sqrt(2 * size) * noise
    return inner(denoise, process, x, memory, at._replace(noise=lambda j: at.noise(count + j)))


def corrected(predictor: Sampler, *, snr: float, corrector_steps: int = 1, norms: str = "sample") -> Sampler:
    """A sampler with steps of Langevin dynamics at time t before each of its steps: predictor-corrector.

    Song et al. 2021 (score SDE), algorithms 1, 4 and 5, in the order of their code: x + e score + sqrt(2 e) z with
    e = 2 (snr |z| / |score|)^2. norms: "sample", of each on its own; "batch", their mean over the batch as published, so that
    a sample depends on its batch and device. The factor 1 - beta that they give e on tables is left out. Bias: in many
    dimensions a long correction ends at 1 + snr^2 of the variance; in few the norms of single samples vary, 1 / |score|^2
    without bound, and "batch" is the better one. ValueError for other norms. Evaluations per step: corrector_steps more than
    the predictor's.
    """
    if norms not in NORMS:
        raise ValueError(f"norms must be one of {', '.join(NORMS)}, found {norms!r}")
    knobs = Partial(NORMS[norms]), jnp.asarray(snr, float), Static(corrector_steps)
    return dataclasses.replace(with_steps(predictor, lambda step: Partial(_corrected_step, step, *knobs)), order=0)


PREDICTORS = {
    "reverse_diffusion": reverse_diffusion,
    "euler_maruyama": euler_maruyama,
    "ancestral": ancestral,
    "ddim": ddim,
    "euler": euler,
}


def predictor_corrector(
    *, predictor: str = "reverse_diffusion", snr: float = 0.16, corrector_steps: int = 1, norms: str = "sample"
) -> Sampler:
    """`corrected` of one of PREDICTORS with its defaults. ValueError for another name.

    snr 0.16 is the published one for VE and VP on CIFAR-10 with `norms="batch"`.
    """
    if predictor not in PREDICTORS:
        raise ValueError(f"predictor must be one of {', '.join(PREDICTORS)}, found {predictor!r}")
    return corrected(PREDICTORS[predictor](), snr=snr, corrector_steps=corrector_steps, norms=norms)


def _langevin(rate, langevin_steps, process, x, t, at, first):
    """Langevin steps at the level t, with the noises from `first` on: in y = x / alpha as in x, but for the size of a step."""
    sigma = process.sigma(t)
    t = jnp.where(sigma == 0, at.t, t)  # a level without noise has steps of size 0, and no eps

    def move(denoise, in_loop, x, j):  # noqa: ARG001
        return x - rate * sigma * denoise(x, t).eps + jnp.sqrt(2 * rate) * sigma * at.noise(first + j)

    return repeat(at, langevin_steps, move, x)


def _annealed_step(rate, langevin_steps, denoise, process, x, memory, at):  # noqa: ARG001 - it evaluates in loops
    x = process.alpha(at.s) / process.alpha(at.t) * x
    x = _langevin(rate, langevin_steps.value, process, x, at.s, at, 0)
    return x, x, memory


def _annealed_start(rate, langevin_steps, denoise, process, x, memory, at):
    x = _langevin(rate, langevin_steps.value, process, x, at.t, at, langevin_steps.value)
    return _annealed_step(rate, langevin_steps, denoise, process, x, memory, at)


def annealed_langevin(*, langevin_steps: int = 5, rate: float = 0.062) -> Sampler:
    """On every level of the grid n = langevin_steps of y + rate z^2 grad log p(y) + sqrt(2 rate) z noise; y = x / alpha,
    z = sigma / alpha. From level to level y is handed on as it is (Song & Ermon 2019, algorithm 1; 2020, algorithm 3).

    rate: their step size in units of the noise's variance: e / (2 sigma_L^2) = 0.1 of NCSN (e = 2e-5, sigma_L = 0.01, n = 100),
    e / sigma_L^2 = 0.062 of NCSNv2 (6.2e-6, 0.01, n = 5), whose last denoising is `last="denoise"`; "mean" is "stop".
    Bias: where the data are narrow against z, the variance on a level tends to 1 / (1 - rate / 2) of the true one, and
    (1 - rate)^2n of a wider level's excess remains. A grid of one time has no step. ValueError for langevin_steps < 1.
    Evaluations per step: n, first 2n.
    """
    if langevin_steps < 1:
        raise ValueError(f"langevin_steps must be at least 1, found {langevin_steps}")
    knobs = jnp.asarray(rate, float), Static(langevin_steps)
    return Sampler(
        Partial(no_memory),
        Partial(_annealed_step, *knobs),
        start=Partial(_annealed_start, *knobs),
        starts=1,
        order=0,
        needs_alpha="it acts on x / alpha",
    )
