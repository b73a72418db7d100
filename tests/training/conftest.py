import numpy as np
import pytest

from ddpm_jax import config as configs
from ddpm_jax import variants
from ddpm_jax.data import Source


@pytest.fixture
def tiny_config():
    """The smoke size on made-up 8x8 images, with dropout, so that all the randomness of training is in play."""
    config = variants.apply(configs.base(), "smoke")
    config.network.dropout = 0.1
    return config


@pytest.fixture
def point_config(tiny_config):
    """The same with a perceptron, for points: it compiles in a second."""
    tiny_config.network.name = "mlp"
    tiny_config.sampler.clip = "none"
    return tiny_config


@pytest.fixture
def point_source():
    """48 points of 3 classes."""
    points = np.random.default_rng(0).normal(size=(48, 2)).astype("f")
    return Source({"image": points, "label": np.arange(48, dtype=np.int32) % 3}, 3)


@pytest.fixture
def tiny_source():
    """48 images of noise and their labels."""
    random = np.random.default_rng(0)
    arrays = {"image": random.integers(0, 256, (48, 8, 8, 1), dtype=np.uint8), "label": np.arange(48, dtype=np.int32) % 10}
    return Source(arrays, 10)
