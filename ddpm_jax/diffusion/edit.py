"""New images from given ones: between two, by their noises; near one, by way of some noise."""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.predictions import Denoiser
from ddpm_jax.diffusion.process import Process, add_noise, expand, root
from ddpm_jax.diffusion.sample import Sampled, noise_keys, sample
from ddpm_jax.diffusion.samplers import Sampler


def _norms(x):
    """Per example, with axes to broadcast; with a finite gradient at 0."""
    return root(jnp.sum(x**2, range(1, x.ndim), keepdims=True))


def slerp(a: jax.Array, b: jax.Array, fraction: jax.Array) -> jax.Array:
    """[sin((1 - f) w) a + sin(f w) b] / sin w, w the angle between a and b: from a (f = 0) to b (f = 1) on an arc.

    Shoemake 1985; Song et al. 2021 (DDIM), eq. 67, for noises, which keep their norm on the way. Per example over all of its
    elements; a, b: [B, ...], not 0; fraction: [] or [B]. Parallel a and b give the straight line; opposite ones have no arc.
    """
    of_a, of_b = _norms(a), _norms(b)
    angle = 2 * jnp.arctan2(_norms(of_b * a - of_a * b), _norms(of_b * a + of_a * b))  # exact for small ones, unlike arccos
    fraction = expand(jnp.asarray(fraction, a.dtype), a)
    weigh = lambda share: share * jnp.sinc(share * angle / jnp.pi) / jnp.sinc(angle / jnp.pi)  # noqa: E731
    return weigh(1 - fraction) * a + weigh(fraction) * b


def noised(process: Process, t: jax.Array, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Images [B, ...] at the time t, noised by the normals that sampling with their keys starts from."""
    eps = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(noise_keys(keys, 0, 0))
    return add_noise(process, images, eps, t)


def img2img(
    sampler: Sampler,
    denoise: Denoiser,
    process: Process,
    times: jax.Array,
    keys: jax.Array,
    images: jax.Array,
    *,
    last: str = "denoise",
    frames: int = 0,
) -> Sampled:
    """Noises images [B, ...] to times[0] and runs the sampler from there down the grid (Meng et al. 2022, SDEdit).

    times: [N], decreasing, the end of a grid: `grid[grid <= t]`; the later times[0], the less stays of the image: where
    alpha(times[0]) = 0 this is sampling with the keys. Else as `sample`, with its errors.
    """
    x = noised(process, times[0], keys, images)
    return sample(sampler, denoise, process, times, keys, images.shape[1:], x=x, last=last, frames=frames)
