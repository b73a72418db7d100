import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import upfirdn

from ddpm_jax.models.resampling import double, fir_blur, fir_double, fir_halve, halve


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)


def resampled(image, gain, up, down, first, size):
    """By SciPy, along each axis: zeros stuffed in, the filter, every `down`-th from the `first` on."""
    taps = gain * np.array([1, 3, 3, 1]) / 8
    for axis in (1, 2):
        image = np.apply_along_axis(lambda line: upfirdn(taps, line, up)[first::down], axis, image)
        image = np.take(image, range(size[axis - 1]), axis)
    return image


def test_box():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    chex.assert_trees_all_equal(halve(x)[0, :, :, 0], jnp.array([[2.5, 4.5], [10.5, 12.5]]))
    chex.assert_trees_all_equal(double(x), jax.image.resize(x, (1, 8, 8, 1), "nearest"))
    chex.assert_trees_all_equal(halve(double(x)), x)


def test_fir_against_scipy(image):
    """Halving pads by 1 and 1, doubling by 2 and 1 around the stuffed image (whose gain is 4), the blur by 2 and 2."""
    np.testing.assert_allclose(fir_halve(image), resampled(image, 1, 1, 2, 2, (4, 6)), atol=1e-6)
    np.testing.assert_allclose(fir_double(image), resampled(image, 2, 2, 1, 1, (16, 24)), atol=1e-6)
    np.testing.assert_allclose(fir_blur(image), resampled(image, 1, 1, 1, 1, (9, 13)), atol=1e-6)


def test_the_blurred_image_is_sampled_where_halving_samples_it(image):
    """A valid 3x3 convolution with stride 2, of which only the middle is 1, gives the halved image: nothing is shifted."""
    middle = jnp.zeros((3, 3)).at[1, 1].set(1)[:, :, None, None] * jnp.eye(3)
    layout = ("NHWC", "HWIO", "NHWC")
    convolved = jax.lax.conv_general_dilated(fir_blur(image), middle, (2, 2), "VALID", dimension_numbers=layout)
    np.testing.assert_allclose(convolved, fir_halve(image), atol=1e-6)


def test_fir_keeps_constants_within_the_edges():
    constant = jnp.full((1, 8, 8, 1), 3.0)
    for f, size in ((fir_halve, 4), (fir_double, 16), (fir_blur, 9)):
        out = f(constant)
        assert out.shape == (1, size, size, 1)
        np.testing.assert_allclose(out[:, 2:-2, 2:-2] if size > 4 else out[:, 1:-1, 1:-1], 3.0)
        assert (out[:, 0] < 3).all()  # outside is 0


def test_doubling_is_the_adjoint_of_halving(image):
    small = np.random.default_rng(1).normal(size=(2, 4, 6, 3)).astype(np.float32)
    _, adjoint = jax.vjp(fir_halve, image)
    np.testing.assert_allclose(fir_double(small), 4 * adjoint(small)[0], atol=1e-6)


def test_fir_in_bfloat16(image):
    """The weights are exact in it and the sums stay in it."""
    for f in (fir_halve, fir_double, fir_blur):
        out = f(jnp.asarray(image, jnp.bfloat16))
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(out, np.float32), f(image), atol=0.05)
