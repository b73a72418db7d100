"""Halving and doubling images [B, H, W, C] of even height and width: by averages and repetition, or by a filter.

The filter is [1, 3, 3, 1] / 8 along height and along width, as in StyleGAN2 (Karras et al. 2020) and Song et al. 2021 (score
SDE, appendix H): it blurs what the smaller image could not hold (Zhang 2019). Beyond its edges an image is 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn


def halve(x: jax.Array) -> jax.Array:
    """The means of 2x2 pixels."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


def double(x: jax.Array) -> jax.Array:
    """Each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def fir_halve(x: jax.Array) -> jax.Array:
    """y_i = (x_{2i-1} + 3 x_{2i} + 3 x_{2i+1} + x_{2i+2}) / 8 along both axes."""
    return _filtered(x, (1, 1), stride=2)


def fir_double(x: jax.Array) -> jax.Array:
    """y_{2i} = (x_{i-1} + 3 x_i) / 4, y_{2i+1} = (3 x_i + x_{i+1}) / 4 along both axes: 4 times the adjoint of fir_halve."""
    return _filtered(x, (2, 2), stuffing=1)


def fir_blur(x: jax.Array) -> jax.Array:
    """Filtered with a margin of 2: one pixel more each way, for the valid 3x3 convolution with stride 2 that comes next."""
    return _filtered(x, (2, 2))


def _filtered(x, margin, stride=1, stuffing=0):
    """`stuffing` zeros between pixels, which count for more as they are fewer; a margin of zeros; the filter; the stride."""
    for axis in (1, 2):
        padding = [(0, 0, 0)] * 4
        padding[axis] = (*margin, stuffing)
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), padding)
        end = x.shape[axis] - 3
        taps = (jax.lax.slice_in_dim(x, k, end + k, stride, axis) for k in range(4))
        x = sum((1 + stuffing) * weight / 8 * tap for weight, tap in zip((1, 3, 3, 1), taps, strict=True))
    return x


# What halves, what doubles, and what prepares for a strided convolution with which padding.
RESAMPLING: dict[str, tuple[Callable, Callable, Callable, str]] = {
    "box": (halve, double, lambda x: x, "SAME"),
    "fir": (fir_halve, fir_double, fir_blur, "VALID"),
}
