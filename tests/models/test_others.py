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


@pytest.mark.thorough
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


@pytest.mark.thorough
@pytest.mark.parametrize("name, options", [*((name, {}) for name in NETWORKS), ("unet", {"scale_shift_norm": True})])
def test_labels(name, options):
    """A network with classes has one parameter more, the embedding. Labels act, each on its example; None is the null label."""
    section = SMALL | {"name": name, "groups": 4} | options  # with one channel a group, what is added to all pixels is lost
    shape = (2,) if name == "mlp" else (8, 8, 1)
    plain, network = construct(NETWORKS, section), construct(NETWORKS, section | {"num_classes": 3})
    without, params = perturbed(plain, shape)["params"], perturbed(network, shape)["params"]
    embedding = params.pop("Embed_0")["embedding"]
    chex.assert_trees_all_equal_shapes_and_dtypes(without, params)
    assert embedding.shape[0] == 3 + 1
    params = {"params": params | {"Embed_0": {"embedding": embedding}}}

    x, time = jnp.broadcast_to(jax.random.normal(jax.random.key(0), shape), (4, *shape)), jnp.full(4, 7.0)
    apply = jax.jit(network.apply)
    out = apply(params, x, time, None, jnp.arange(4))
    chex.assert_type(out, jnp.float32)
    assert all(np.abs(out[i] - out[j]).max() > 1e-2 for i in range(4) for j in range(i))
    chex.assert_trees_all_close(apply(params, x, time, None, jnp.array([0, 2, 2, 1]))[jnp.array([0, 3, 2])], out[:3], atol=1e-5)
    chex.assert_trees_all_close(apply(params, x, time)[0], out[3], atol=1e-5)
    unknown = np.isnan(apply(params, x, time, None, jnp.array([0, 4, 1, 2]))).reshape(4, -1)
    assert unknown.all(1).tolist() == unknown.any(1).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="has no classes"):
        plain.apply({"params": without}, x, time, None, jnp.zeros(4, int))


def test_the_simple_unet_has_the_usual_channels():
    network = SimpleUNet(channels=64, multipliers=(1, 2, 4, 4), groups=32, dropout=0.0, dtype="float32")
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)), jnp.zeros(1))["params"]
    widths = [params[f"SimpleBlock_{i}"]["Conv_1"]["kernel"].shape[-1] for i in range(6)]
    assert widths == [128, 256, 256, 256, 128, 64]
    assert params["Conv_0"]["kernel"].shape[-1] == 64 and params["ConvTranspose_0"]["kernel"].shape[:2] == (4, 4)
