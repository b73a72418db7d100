
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import dropout, group_norm, sinusoidal_embedding
from ddpm_jax.models.unet import UNet, check_image_size

TINY = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), heads=2, groups=4, dropout=0.0, dtype="float32")
NCSNPP = TINY | dict(
    skip_rescale=True, residual_resample=True, resample_projection=True, single_up_attention=True, time_embedding="fourier",
    fourier_scale=0.2, resampling="fir", progressive_input=True,
)  # fmt: skip
both = pytest.mark.parametrize("options", [TINY, NCSNPP], ids=["plain", "NCSN++"])


def init(network, shape):
    return jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1))


def perturbed(params):
    """Parameters without zeros: the zero-initialised last layers would hide everything behind them."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def test_the_papers_cifar10_network_has_its_35_7_million_parameters():
    network = UNet(
        channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), heads=1, groups=32, dropout=0.1, dtype="float32"
    )
    params = jax.eval_shape(lambda: init(network, (32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 35_746_307


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_output_is_like_the_image_and_starts_at_zero(self):
        network = UNet(**TINY)
        x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
        out = self.variant(network.apply)(init(network, (8, 8, 3)), x, jnp.array([0.0, 7.0]))
        chex.assert_equal_shape((out, x))
        chex.assert_type(out, jnp.float32)
        chex.assert_trees_all_equal(out, jnp.zeros_like(x))


@pytest.mark.parametrize("side, levels", [(28, 3), (32, 4), (8, 2), (8, 4), (7, 1)])
def test_sizes_that_the_levels_divide(side, levels):
    network = UNet(**TINY | dict(multipliers=(1,) * levels, attention=()))
    shape = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), jnp.zeros((1, side, side, 1)), jnp.zeros(1))[0])
    chex.assert_shape(shape, (1, side, side, 1))


def test_a_size_that_does_not_fit_names_those_that_do():
    with pytest.raises(UserError, match=r"4 levels.*divisible by 8.*28x28.*at most 3 levels.*24x24, 32x32"):
        check_image_size((28, 28), 4)
    check_image_size((28, 24), 3)


@pytest.mark.thorough
@both
def test_bfloat16_computes_and_float32_stays(options):
    exact, half = UNet(**options), UNet(**options | dict(dtype="bfloat16"))
    params = perturbed(init(exact, (8, 8, 1)))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, jax.eval_shape(lambda: init(half, (8, 8, 1))))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    time = jnp.array([3.0, 500.0])
    out = jax.jit(half.apply)(params, x, time)
    chex.assert_type(out, jnp.float32)
    reference = jax.jit(exact.apply)(params, x, time)
    error = jnp.sqrt(jnp.mean((out - reference) ** 2) / jnp.mean(reference**2))
    assert 1e-5 < error < 0.05


def test_normalisation_in_bfloat16_has_its_statistics_in_float32():
    """Mean 20, deviation 1: squares rounded to bfloat16's 8 bits would be wrong by more than the variance.

    Against float64 by hand, to the two roundings of the result, which lies within 4.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(20, 1, (2, 4, 4, 8)), jnp.bfloat16)
    norm = group_norm(8, 2, jnp.bfloat16)
    out = norm.apply(norm.init(jax.random.key(0), x), x)
    groups = np.asarray(x, np.float64).reshape(2, 16, 2, 4)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / groups.std((1, 3), keepdims=True)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), expected.reshape(x.shape), atol=4 * 2**-7)


def test_sinusoidal_embedding():
    """Frequencies fall from 1 to 1/10000; written here as an independent loop."""
    time = np.array([0.0, 1.0, 999.0])
    expected = np.zeros((3, 8))
    for k in range(4):
        frequency = 10_000 ** (-k / 3)
        expected[:, k], expected[:, 4 + k] = np.sin(time * frequency), np.cos(time * frequency)
    chex.assert_trees_all_close(sinusoidal_embedding(jnp.asarray(time, jnp.float32), 8), expected.astype(np.float32), atol=1e-4)


def test_dropout_is_addressed_per_example():
    keys = jax.random.split(jax.random.key(0), 64)
    x = jnp.ones((64, 100))
    dropped = dropout(x, 0.3, keys, 5)
    chex.assert_trees_all_equal(dropped[10:12], dropout(x[10:12], 0.3, keys[10:12], 5))
    assert not np.array_equal(dropped, dropout(x, 0.3, keys, 6))
    assert not np.array_equal(dropped[0], dropped[1])
    kept = np.asarray(dropped > 0)
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.21 / kept.size)
    np.testing.assert_allclose(dropped[kept], 1 / 0.7, rtol=1e-6)
    assert dropout(x, 0.3, None, 5) is x


def test_adm_at_64_pixels_has_its_296_million_parameters():
    """Dhariwal & Nichol 2021, table 4, less what is not here, three of the six output channels (5,187), and with what is not
    there, the null label (768)."""
    network = UNet(
        channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), heads=1, groups=32, dropout=0.1,
        dtype="float32", scale_shift_norm=True, residual_resample=True, head_channels=64, num_classes=1000,
    )  # fmt: skip
    params = jax.eval_shape(lambda: init(network, (64, 64, 3)))
    assert round((sum(leaf.size for leaf in jax.tree.leaves(params)) - 768 + 5_187) / 1e6) == 296


def test_attention_where_there_is_no_such_map_is_refused():
    with pytest.raises(UserError, match=r"attention is \(5,\).*8, 4 pixels high"):
        jax.eval_shape(lambda: init(UNet(**TINY | dict(attention=(5,))), (8, 8, 1)))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="Attention on 16 channels.*heads=3"):
        jax.eval_shape(lambda: init(UNet(**TINY | dict(heads=3)), (8, 8, 1)))
