import chex
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.losses import WEIGHTINGS, denoising_loss
from ddpm_jax.diffusion.oracle import gaussian_denoiser
from ddpm_jax.diffusion.predictions import PREDICTIONS
from ddpm_jax.diffusion.processes import linear
from ddpm_jax.diffusion.times import uniform

PROCESS = linear()


def test_loss_of_the_exact_denoiser_is_the_posterior_variance():
    """For x_0 ~ N(m, v), the least E|eps - eps_hat|^2 at time t is alpha^2 v / (alpha^2 v + sigma^2)."""
    mean, std, count = 0.3, 0.5, 200_000
    denoise = gaussian_denoiser(PROCESS, mean, std)
    x_key, eps_key = jax.random.split(jax.random.key(0))
    x0 = mean + std * jax.random.normal(x_key, (count, 1))
    eps = jax.random.normal(eps_key, (count, 1))
    for n in (1, 50, 300, 1000):
        t = jnp.full(count, n / 1000)
        losses = denoising_loss(
            lambda x, time: denoise(x, (time + 1) / 1000).eps, PROCESS, PREDICTIONS["eps"], WEIGHTINGS["simple"], x0, eps, t
        )
        chex.assert_shape(losses, (count,))
        signal = (PROCESS.alpha(n / 1000) * std) ** 2
        exact = signal / (signal + PROCESS.sigma(n / 1000) ** 2)
        chex.assert_trees_all_close(losses.mean(), exact, rtol=4 * np.sqrt(2 / count))


def test_uniform_times_are_each_table_entry_alike():
    """200,000 draws on 10 steps: counts within 5 standard deviations; every t on the grid n/T, n = 1..T."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), jnp.arange(200_000))
    t = np.asarray(uniform(linear(steps=10, beta_start=0.1, beta_end=0.3), keys)) * 10
    np.testing.assert_allclose(t, np.rint(t), atol=1e-5)
    counts = np.bincount(np.rint(t).astype(int), minlength=11)
    assert counts[0] == 0 and len(counts) == 11
    assert np.abs(counts[1:] - 20_000).max() < 5 * np.sqrt(200_000 * 0.1 * 0.9)
    chex.assert_trees_all_close(t[3], 10 * uniform(linear(steps=10, beta_start=0.1, beta_end=0.3), keys[3:4])[0])
