"""What the parameters of every network are at first: which are 0, and of which law the others are."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kstest, norm, truncnorm, uniform

from ddpm_jax import config as configs
from ddpm_jax.construct import construct
from ddpm_jax.models import NETWORKS
from ddpm_jax.models.classifier import Classifier

SMALL = dict(configs.base().network) | dict(
    channels=8, multipliers=(1, 2), blocks=1, attention=(), heads=2, groups=4, num_classes=30
)
# What ends a branch or the network.
OF_UNET = (r"ResidualBlock_\d+/Conv_1", r"SelfAttention_\d+/out")
ZERO = {
    "unet": (*OF_UNET, "Conv_3"),
    "classifier": (*OF_UNET, "AttentionPool_0/out"),
    "simple_unet": ("Conv_2",),
    "mlp": ("Dense_5", "Dense_6"),
}
# Of a kernel times the root of its fan: the average one and uniform, as Ho et al. 2020 have it; or Flax's, by what comes in.
AVERAGE = lambda entering, leaving: (entering + leaving) / 2, uniform(-math.sqrt(3), 2 * math.sqrt(3))
ENTERING = lambda entering, leaving: entering, truncnorm(-2, 2, scale=1 / truncnorm(-2, 2).std())  # noqa: ARG005
LAWS = {"unet": AVERAGE, "classifier": AVERAGE, "simple_unet": ENTERING, "mlp": ENTERING}


def begun(name):
    section = SMALL | {"name": "unet" if name == "classifier" else name}
    network = construct(NETWORKS, section | ({"num_classes": 0} if name == "classifier" else {}))
    network = Classifier(network, 5) if name == "classifier" else network
    x = jnp.zeros((1, 2) if name == "mlp" else (1, 8, 8, 3))
    params = jax.jit(network.init)(jax.random.key(0), x, jnp.zeros(1))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


@pytest.mark.parametrize("name", [*NETWORKS, "classifier"])
def test_first_parameters(name):
    """Networks begin at 0, as branches do; kernels have the variance of their fan; embeddings have the variance 1."""
    assert name in ZERO, f"add {name} to the tables above"
    (fan, law), scaled, zero = LAWS[name], [], set()
    for path, leaf in begun(name).items():
        layer, kind = path.rpartition("/")[::2]
        if kind == "kernel" and not leaf.any():
            zero.add(layer)
        elif kind == "kernel":
            heads = re.search("query|key|value", layer)
            entering, leaving = (leaf.shape[0], leaf[0].size) if heads else (leaf[..., 0].size, leaf[..., 0, :].size)
            scaled.append(leaf.ravel() * math.sqrt(fan(entering, leaving)))
        elif kind in ("embedding", "places"):
            assert kstest(leaf.ravel() * (1 if kind == "embedding" else math.sqrt(leaf.shape[-1])), norm.cdf).pvalue > 1e-3
        else:
            assert kind in ("bias", "scale") and (leaf == (kind == "scale")).all(), path
    assert kstest(np.concatenate(scaled), law.cdf).pvalue > 1e-3
    assert all(any(re.fullmatch(pattern, layer) for pattern in ZERO[name]) for layer in zero), zero
    assert all(any(re.fullmatch(pattern, layer) for layer in zero) for pattern in ZERO[name]), zero
