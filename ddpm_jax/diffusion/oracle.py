"""Data distributions whose denoiser is known in closed form: debug a sampler here before any network is trained."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ddpm_jax.diffusion.predictions import Denoiser, from_x0
from ddpm_jax.diffusion.processes import Process, expand
from ddpm_jax.diffusion.samplers import At, Sampler


def gaussian_denoiser(process: Process, mean: jax.Array, std: jax.Array) -> Denoiser:
    """The exact E[x_0 | x_t] for x_0 ~ N(mean, diag(std^2)); mean, std: broadcastable to x [B, ...].

    x0 = mean + alpha std^2 / (alpha^2 std^2 + sigma^2) (x - alpha mean).
    """

    def denoise(x, t):
        alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
        gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
        return from_x0(process, x, t, mean + gain * (x - alpha * mean))

    return denoise


def propagate(
    sampler: Sampler,
    denoise: Denoiser,
    process: Process,
    times: jax.Array,
    mean: jax.Array,
    covariance: jax.Array,
    normals: int = 2,
) -> tuple[jax.Array, jax.Array]:
    """Exact mean [D] and covariance [D, D] of a sampler's state at times[-1], without sampling.

    mean, covariance: of the state at times[0]. Holds where every step is affine in the state, the sampler's memory and its
    normals, as it is with `gaussian_denoiser`: then moments propagate as m' = f(m), C' = A C A^T + B B^T. The sampler may
    draw up to `normals` normals per step; more is an IndexError.
    """
    flat, unravel = ravel_pytree((mean[None], sampler.init(mean[None])))
    dimension = len(mean)

    def body(moments, inputs):
        i, t, s = inputs

        def step(state, noises):
            x, memory = unravel(state)
            x, _, memory = sampler.step(denoise, process, x, memory, At(t, s, i, len(times) - 1, noises.__getitem__))
            return ravel_pytree((x, memory))[0]

        m, c = moments
        zeros = (jnp.zeros((1, dimension)),) * normals
        by_state, by_noise = jax.jacfwd(step, argnums=(0, 1))(m, zeros)
        c = by_state @ c @ by_state.T + sum(b[:, 0] @ b[:, 0].T for b in by_noise)
        return (step(m, zeros), c), None

    start = jnp.zeros((len(flat), len(flat)), flat.dtype).at[:dimension, :dimension].set(covariance)
    steps = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    (m, c), _ = jax.lax.scan(body, (flat, start), steps)
    return m[:dimension], c[:dimension, :dimension]
