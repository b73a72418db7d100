"""Step by step against the states of diffusers' schedulers in tests/peers/trajectories.npz, which trajectories.py there made.

They pin the published coefficients where PyTorch is not installed; tests/peers compares much more.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import samplers
from ddpm_jax.diffusion.predictions import PREDICTIONS, network_denoiser
from ddpm_jax.diffusion.processes import PROCESSES
from ddpm_jax.diffusion.samplers import At

PEERS = np.load(Path(__file__).parent.parent / "peers" / "trajectories.npz")
ON_LINEAR = ("ancestral small", "ancestral", "ddim", "ddim 0.5")
OURS = {
    "ancestral small": partial(samplers.ancestral, variance="fixed_small"),
    "ancestral": partial(samplers.ancestral, variance="fixed_large"),
    "ddim": samplers.ddim,
    "ddim 0.5": partial(samplers.ddim, eta=0.5),
    "dpmpp_2m": samplers.dpmpp_2m,
    "sde_dpmpp_2m": samplers.sde_dpmpp_2m,
    "dpmpp_3m published": partial(samplers.dpmpp_3m, published=True),
    "unipc 1": partial(samplers.unipc, order=1),
    "unipc": samplers.unipc,
    "unipc 3": partial(samplers.unipc, order=3),
    "unip 2": partial(samplers.unipc, order=2, corrector=False),
    "deis": samplers.deis,
    "deis 3 published": partial(samplers.deis, order=3, published=True),
    "plms": samplers.plms,
    "pndm": samplers.pndm,
}


def times_of(name):
    """Those of the states: their indices n - 1, and where they end: at n = 1, or at 0."""
    n = PEERS[f"{name}/indices"] + 1
    if name == "pndm":
        n = np.arange(901, 0, -100)  # those in between are of its first steps
    return np.append(n, 0 if n[-1] == 1 else 1) / 1000


@pytest.mark.parametrize("name", OURS)
def test_the_states_are_the_peers(name, x64):  # noqa: ARG001
    process = PROCESSES["linear" if name in ON_LINEAR else "scaled_linear"]()

    def network(x, index):
        fresh = jnp.exp(-5 * (index / 1000) ** 2)[:, None]
        mixed = jnp.tanh(x @ PEERS["mix"] + jnp.cos(PEERS["rates"] * index[:, None]))
        return jnp.sqrt(1 - fresh**2) * x + fresh * mixed

    denoise, sampler = network_denoiser(network, process, PREDICTIONS["eps"]()), OURS[name]()

    @jax.jit
    def move(step, x, memory, t, s, i, noise):
        return step(denoise, process, x, memory, At(t, s, i, 0, lambda _: noise, None))

    times, x, states = jnp.asarray(times_of(name)), jnp.asarray(PEERS["start"]), []
    memory = sampler.init(x)
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        step = sampler.start if i < sampler.starts else sampler.step
        x, mean, memory = move(step, x, memory, t, s, i, PEERS["noise"][i])
        states.append(x if s > 0 else mean)  # they add no noise to what they return
    np.testing.assert_allclose(np.stack(states), PEERS[f"{name}/states"], rtol=1e-9, atol=1e-9)
