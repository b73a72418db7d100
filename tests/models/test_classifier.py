import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.unet import UNet

TINY = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, groups=4, dropout=0.5, dtype="float32")


def init(network):
    return jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))


@pytest.mark.thorough
def test_logits():
    """They start at 0. Then image, time and dropout act, each on its example; parameters are those of the U-Net's way down."""
    network = Classifier(UNet(**TINY), classes=3)
    params = init(network)
    x, time = jax.random.normal(jax.random.key(1), (3, 8, 8, 1)), jnp.array([1.0, 50.0, 900.0])
    apply = jax.jit(network.apply)
    chex.assert_trees_all_equal(apply(params, x, time), jnp.zeros((3, 3)))
    of_unet = jax.eval_shape(UNet(**TINY).init, jax.random.key(0), x, time)["params"]
    for name in ("Conv_0", "Conv_1", "Dense_0", "Dense_1", "ResidualBlock_1", "ResidualBlock_3", "SelfAttention_1"):
        chex.assert_trees_all_equal_shapes_and_dtypes(params["params"][name], of_unet[name])

    params = jax.tree.map(lambda w: w + 0.1 * jnp.sin(jnp.arange(w.size, dtype=jnp.float32)).reshape(w.shape), params)
    logits = apply(params, x, time)
    chex.assert_type(logits, jnp.float32)
    np.testing.assert_allclose(logits[1:2], apply(params, x[1:2], time[1:2]), atol=1e-4)
    keys = jax.random.split(jax.random.key(2), 3)
    for other in (apply(params, x, time[::-1]), apply(params, x[::-1], time), apply(params, x, time, keys)):
        assert np.abs(other - logits)[0].max() > 1e-3
    half = Classifier(UNet(**TINY | {"dtype": "bfloat16"}), classes=3).apply(params, x, time)
    chex.assert_type(half, jnp.float32)
    np.testing.assert_allclose(half, logits, atol=0.1 * np.abs(logits).max())


def test_heads_that_do_not_divide():
    with pytest.raises(UserError, match="heads=3"):
        jax.eval_shape(lambda: init(Classifier(UNet(**TINY | {"heads": 3}), classes=3)))
