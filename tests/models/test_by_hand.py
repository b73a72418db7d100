"""Every network, and its parts with every option, against plain NumPy in float64: to 1e-5 of the largest output."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config as configs
from ddpm_jax.construct import arguments, construct
from ddpm_jax.models import NETWORKS, resampling
from ddpm_jax.models.classifier import Classifier
from ddpm_jax.models.layers import SelfAttention
from ddpm_jax.models.unet import ResidualBlock, UNet

spec = importlib.util.spec_from_file_location("by_hand", Path(__file__).with_name("by_hand.py"))
by_hand = importlib.util.module_from_spec(spec)
spec.loader.exec_module(by_hand)

SMALL = dict(configs.base().network) | dict(
    channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, groups=4, num_classes=3
)
ADM = SMALL | dict(scale_shift_norm=True, residual_resample=True, head_channels=2, multipliers=(1, 1), attention=(8,))
DDPMPP = SMALL | dict(
    skip_rescale=True, residual_resample=True, resample_projection=True, single_up_attention=True, blocks=2, heads=1
)
NCSNPP = DDPMPP | dict(
    time_embedding="fourier", fourier_scale=0.2, resampling="fir", progressive_input=True, blocks=1, multipliers=(1, 2, 2)
)
KINDS = {"plain": SMALL, "adm": ADM, "ddpmpp": DDPMPP, "ncsnpp": NCSNPP, "fir": SMALL | dict(resampling="fir")}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters(network, *inputs):
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return {"params": by_hand.filled(shapes["params"])}


def assert_close(found, expected):
    assert found.shape == expected.shape and np.isfinite(expected).all()
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


EACH = [
    ("unet", "plain", {"dropout": 0.3}), ("unet", "adm", {}), ("unet", "ddpmpp", {}), ("unet", "ncsnpp", {}),
    ("unet", "fir", {"num_classes": 0}), ("simple_unet", "plain", {"multipliers": (1, 2, 2), "num_classes": 0}),
    ("simple_unet", "plain", {"dropout": 0.3}), ("mlp", "plain", {"blocks": 3, "dropout": 0.3}),
]  # fmt: skip


@pytest.mark.parametrize("name, kind, changes", EACH, ids=lambda value: str(value))
def test_whole_network(name, kind, changes):
    """Images of 8x8 (of 7x9 for the simple U-Net, which takes any), times far apart, a label each and the null label."""
    section = KINDS[kind] | changes | {"name": name}
    network, o = construct(NETWORKS, section), section
    shape = {"mlp": (2,), "simple_unet": (7, 10, 1)}.get(name, (8, 8, 3))
    x, time = random(3, *shape), np.float32([0.0, 3.0, 40.0])
    labels = np.array([0, 2, 3]) if o["num_classes"] else None
    keys = jax.random.split(jax.random.key(1), 3) if o["dropout"] else None
    params = parameters(network, x, time, keys, labels)
    found = jax.jit(network.apply)(params, x, time, keys, labels)
    assert_close(found, getattr(by_hand, name)(params["params"], o, x.astype(float), time, keys, labels))


def test_every_option_of_the_unet_is_in_some_case():
    """Each keyword of the constructors is set to something other than its default in a case above."""
    base = dict(configs.base().network) | {"num_classes": 0}
    cases = [KINDS[kind] | changes | {"name": name} for name, kind, changes in EACH]
    for name, made in NETWORKS.items():
        mine = [case for case in cases if case["name"] == name]
        assert mine, f"add {name} to by_hand.py and to EACH"
        for key in set(arguments(made, base)) - {"dtype"}:
            assert any(case[key] != base[key] for case in mine), f"network.{key} of {name} is in no case of EACH"


@pytest.mark.parametrize("scale_shift_norm", [False, True])
@pytest.mark.parametrize("skip_rescale", [False, True])
@pytest.mark.parametrize("channels, projection", [(4, False), (4, True), (6, False)])
@pytest.mark.parametrize("resample", ["halve", "fir_double"])
def test_residual_block(scale_shift_norm, skip_rescale, channels, projection, resample):
    o = dict(groups=2, dropout=0.25, scale_shift_norm=scale_shift_norm, skip_rescale=skip_rescale)
    block = ResidualBlock(channels, **o, dtype=jnp.float32, projection=projection, resample=getattr(resampling, resample))
    keys = jax.random.split(jax.random.key(3), 2)
    inputs = random(2, 4, 4, 4), random(2, 8, seed=1), keys, 7
    params = parameters(block, *inputs)
    assert ("shortcut" in params["params"]) == (projection or channels != 4)
    expected = by_hand.residual_block(
        params["params"], inputs[0].astype(float), inputs[1], o, channels, keys, 7, getattr(by_hand, resample)
    )
    assert_close(block.apply(params, *inputs), expected)


@pytest.mark.parametrize("skip_rescale", [False, True])
def test_self_attention(skip_rescale):
    attention = SelfAttention(heads=2, groups=2, dtype=jnp.float32, skip_rescale=skip_rescale)
    x = random(2, 3, 5, 8)
    params = parameters(attention, x)
    assert_close(attention.apply(params, x), by_hand.self_attention(params["params"], x.astype(float), 2, 2, skip_rescale))


def test_classifier():
    o = SMALL | dict(num_classes=0, dropout=0.3)
    network = Classifier(UNet(**arguments(UNet, o)), classes=5)
    x, time, keys = random(2, 8, 8, 1), np.float32([1.0, 300.0]), jax.random.split(jax.random.key(1), 2)
    params = parameters(network, x, time, keys)
    assert_close(
        jax.jit(network.apply)(params, x, time, keys), by_hand.classifier(params["params"], o, x.astype(float), time, keys)
    )
