"""The U-Net's options that make it DDPM++ and NCSN++, and the presets that choose them."""


import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.config import presets, variants
from ddpm_jax.construct import construct
from ddpm_jax.models import NETWORKS
from ddpm_jax.models.layers import fourier_embedding
from ddpm_jax.models.unet import UNet
from ddpm_jax.optimizers import optimizer_of

TINY = dict(channels=4, multipliers=(1, 2, 3), blocks=1, attention=(4,), heads=1, groups=2, dropout=0.0, dtype="float32")


def shapes(network, shape=(8, 8, 1)):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))["params"]


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# ------------------------------------------------------- the published networks


def expected_size(multipliers, blocks, ncsnpp, width=128, image=3, side=32, attention=16):
    """Parameters of DDPM++ or NCSN++, counted from models/ncsnpp.py of score_sde and training/networks.py of EDM."""

    def conv(a, b):
        return 9 * a * b + b

    def dense(a, b):
        return a * b + b

    def block(a, b, between=False):
        shortcut = dense(a, b) if a != b or between else 0
        return 2 * a + conv(a, b) + dense(4 * width, b) + 2 * b + conv(b, b) + shortcut

    def attend(c, level):
        return 2 * c + 4 * dense(c, c) if side >> level == attention else 0

    total = dense((1 + ncsnpp) * width, 4 * width) + dense(4 * width, 4 * width) + conv(image, width)
    c, pyramid, skips = width, image, [width]
    for level, multiplier in enumerate(multipliers):
        if level:
            total += block(c, c, between=True)
            if ncsnpp:
                total += conv(pyramid, c)
                pyramid = c
            skips.append(c)
        for _ in range(blocks):
            total += block(c, multiplier * width) + attend(multiplier * width, level)
            c = multiplier * width
            skips.append(c)
    total += 2 * block(c, c) + 2 * c + 4 * dense(c, c)
    for level, multiplier in reversed(list(enumerate(multipliers))):
        for _ in range(blocks + 1):
            total += block(c + skips.pop(), multiplier * width)
            c = multiplier * width
        total += attend(c, level) + (block(c, c, between=True) if level else 0)
    return total + 2 * c + conv(c, image)


def test_the_count_by_hand_is_the_published_one():
    """Lin et al. 2025 (Latent Zoning Network, arXiv:2509.15591), appendix C, of rectified flow's DDPM++ on CIFAR-10."""
    assert expected_size((1, 2, 2, 2), 4, ncsnpp=False) == 61_804_419


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name, blocks, multipliers, ncsnpp, millions",
    [
        ("vp", 4, (1, 2, 2, 2), False, 61.8),
        ("subvp", 8, (1, 2, 2, 2), False, 106.6),
        ("ve", 4, (1, 2, 2, 2), True, 62.8),
        ("ve", 8, (1, 2, 2, 2), True, 107.6),
        ("edm", 4, (2, 2, 2), False, 55.7),
        ("flow", 4, (1, 2, 2, 2), False, 61.8),
    ],
)
def test_variants_train_cifar10_with_the_networks_of_their_papers(name, blocks, multipliers, ncsnpp, millions):
    """8 blocks: the "deep" networks of Song et al. 2021. EDM's has 1,152 more, which read the labels of its augmentation."""
    config = variants.apply(presets.cifar_ddpm(), name, presets.CIFAR_PUBLISHED)
    config.network.blocks += blocks - 4
    count = size(shapes(construct(NETWORKS, config.network), (32, 32, 3)))
    assert count == expected_size(multipliers, blocks, ncsnpp)
    assert round(count / 1e6, 1) == millions


def test_ve_trains_cifar10_as_if_on_half_the_sum_of_squared_errors():
    """Of 3072 values: the updates of the mean's gradients are those that the paper's optimizer makes of 1536 times them."""
    config = variants.apply(presets.cifar_ddpm(), "ve", presets.CIFAR_PUBLISHED)
    ours, theirs = map(optimizer_of, (config, presets.cifar_ddpm()))
    state, their_state = ours.init(jnp.zeros(3)), theirs.init(jnp.zeros(3))
    for size in (1e-8, 1e-5, 1e-2):  # below the clipping norms and above
        gradient = size * jnp.array([1.0, -2.0, 0.5])
        update, state = ours.update(gradient, state)
        their_update, their_state = theirs.update(1536 * gradient, their_state)
        np.testing.assert_allclose(update, their_update, rtol=1e-4)


def test_ncsnpp_with_the_widths_of_edm():
    config = presets.cifar_ddpm()
    presets.ncsnpp(config)
    config.network.multipliers = (2, 2, 2)
    assert size(shapes(construct(NETWORKS, config.network), (32, 32, 3))) == expected_size((2, 2, 2), 4, ncsnpp=True)


# ------------------------------------------------------- what each option does


def test_fourier_embedding():
    """The frequencies are NumPy's first normals from seed 0, which every version of it draws alike, times the scale."""
    time = np.array([-4.6, 0.0, 0.3, 3.9])
    expected = np.zeros((4, 6))
    for k, normal in enumerate([1.764052345967664, 0.4001572083672233, 0.9787379841057392]):
        expected[:, k], expected[:, 3 + k] = np.sin(2 * np.pi * 16 * normal * time), np.cos(2 * np.pi * 16 * normal * time)
    np.testing.assert_allclose(fourier_embedding(jnp.asarray(time, jnp.float32), 3, 16.0), expected, atol=1e-3)


def test_fourier_features_are_no_parameters():
    """Twice as many features as sinusoids, of which the first layer alone takes notice."""
    plain, fourier = shapes(UNet(**TINY)), shapes(UNet(**TINY, time_embedding="fourier"))
    assert plain["Dense_0"]["kernel"].shape == (4, 16) and fourier["Dense_0"]["kernel"].shape == (8, 16)
    fourier["Dense_0"]["kernel"] = plain["Dense_0"]["kernel"]
    chex.assert_trees_all_equal_shapes(plain, fourier)


def test_attention_once_on_the_way_up():
    def modules(**options):
        return sum(name.startswith("SelfAttention") for name in shapes(UNet(**TINY | dict(blocks=3), **options)))

    assert modules() == 3 + 1 + 4 and modules(single_up_attention=True) == 3 + 1 + 1


def test_resample_projection():
    """Of the four residual blocks between three levels, and of no others whose channels stay."""

    def projections(**options):
        return sum("shortcut" in params for params in shapes(UNet(**TINY, residual_resample=True, **options)).values())

    assert projections(resample_projection=True) == projections() + 4
