"""The simple U-Net and the perceptron."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as configs
from ddpm_jax.construct import construct
from ddpm_jax.models import NETWORKS
from ddpm_jax.models.mlp import MLP
from ddpm_jax.models.simple_unet import SimpleUNet

UNET = SimpleUNet(channels=8, multipliers=(1, 2, 4, 4), groups=4, dropout=0.5, dtype="float32")
SMALL = dict(configs.base().network) | {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (), "heads": 1}
PERCEPTRON = MLP(channels=16, blocks=2, dropout=0.5, dtype="float32")


def perturbed(network, shape):
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))
    return jax.tree.map(lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), params)


@pytest.mark.parametrize("network, shape", [(UNET, (8, 8, 1)), (UNET, (7, 10, 3)), (PERCEPTRON, (2,))])
def test_networks(network, shape):
    """Output like the input, zero at the start; examples on their own; time matters; dropout by per-example keys."""
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))
    x = jax.random.normal(jax.random.key(0), (3, *shape))
    time = jnp.array([1.0, 50.0, 900.0])
    apply = jax.jit(network.apply)
    chex.assert_trees_all_equal(apply(params, x, time), jnp.zeros_like(x))

    params = perturbed(network, shape)
    out = apply(params, x, time)
    chex.assert_type(out, jnp.float32)
    chex.assert_trees_all_close(out[1], apply(params, x[1:2], time[1:2])[0], atol=1e-4)
    assert np.abs(out[1] - apply(params, x[1:2], time[2:3])[0]).max() > 1e-3
    keys = jax.random.split(jax.random.key(1), 3)
    dropped = apply(params, x, time, keys)
    assert np.abs(dropped - out).max() > 1e-3
    chex.assert_trees_all_close(dropped[1], apply(params, x[1:2], time[1:2], keys[1:2])[0], atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_two_outputs_per_channel(name):
    """For a mean and a variance: the last layer alone is wider."""

    def made(**outputs):
        network = construct(NETWORKS, {**SMALL, "name": name, **outputs})
        x = jnp.zeros((2, 2) if name == "mlp" else (2, 8, 8, 3))
        return jax.eval_shape(network.init_with_output, jax.random.key(0), x, jnp.zeros(2))

    (one, params), (two, wider) = made(), made(outputs=2)
    assert two.shape == (*one.shape[:-1], 2 * one.shape[-1])
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(wider), strict=True)
    assert [b.shape[-1] / a.shape[-1] for a, b in pairs if a.shape != b.shape] == [2, 2]


def test_the_simple_unet_has_the_usual_channels():
    network = SimpleUNet(channels=64, multipliers=(1, 2, 4, 4), groups=32, dropout=0.0, dtype="float32")
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1))["params"]
    widths = [params[f"SimpleBlock_{i}"]["Conv_1"]["kernel"].shape[-1] for i in range(6)]
    assert widths == [128, 256, 256, 256, 128, 64]
    assert params["Conv_0"]["kernel"].shape[-1] == 64 and params["ConvTranspose_0"]["kernel"].shape[:2] == (4, 4)
