"""The U-Net of Ho et al. 2020 (Denoising Diffusion Probabilistic Models, appendix B)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import SelfAttention, dropout, fan_average, group_norm, sinusoidal_embedding, zeros


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv; plus the time embedding; GroupNorm, SiLU, dropout, conv; plus the input."""

    channels: int
    groups: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, embedding, keys, layer):
        h = nn.silu(group_norm(x.shape[-1], self.groups, self.dtype)(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=fan_average)(h)
        h += nn.Dense(self.channels, dtype=self.dtype, kernel_init=fan_average)(nn.silu(embedding))[:, None, None]
        h = nn.silu(group_norm(self.channels, self.groups, self.dtype)(h))
        h = dropout(h, self.dropout, keys, layer)
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=zeros)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, kernel_init=fan_average, name="shortcut")(x)
        return x + h


class UNet(nn.Module):
    """x [B, H, W, C], time [B], keys [B] or None -> [B, H, W, C], float32.

    channels: of the first level; level i has channels * multipliers[i]. blocks: residual blocks per level (one more on
    the way up). attention: the feature-map heights with self-attention. Between levels a strided convolution halves the
    image and nearest-neighbour upsampling doubles it, so height and width must be divisible by 2^(levels - 1).
    dtype: of the computation; parameters, normalisation statistics and the output are float32.
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int
    groups: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x, time, keys=None):
        check_image_size(x.shape[1:3], len(self.multipliers))
        dtype = jnp.dtype(self.dtype)
        options = dict(groups=self.groups, dropout=self.dropout, dtype=dtype)
        image_channels = x.shape[-1]

        embedding = sinusoidal_embedding(time, self.channels).astype(dtype)
        embedding = nn.Dense(4 * self.channels, dtype=dtype, kernel_init=fan_average)(embedding)
        embedding = nn.Dense(4 * self.channels, dtype=dtype, kernel_init=fan_average)(nn.silu(embedding))

        layers = iter(range(1_000_000))  # numbers the residual blocks, which address their dropout by it

        def block(h, channels):
            return ResidualBlock(channels, **options)(h, embedding, keys, next(layers))

        def attend(h):
            return SelfAttention(self.heads, self.groups, dtype)(h)

        h = nn.Conv(self.channels, (3, 3), dtype=dtype, kernel_init=fan_average)(x.astype(dtype))
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = nn.Conv(h.shape[-1], (3, 3), strides=2, dtype=dtype, kernel_init=fan_average)(h)
                skips.append(h)
            for _ in range(self.blocks):
                h = block(h, self.channels * multiplier)
                if h.shape[1] in self.attention:
                    h = attend(h)
                skips.append(h)

        h = block(h, h.shape[-1])
        h = attend(h)
        h = block(h, h.shape[-1])

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.channels * multiplier)
                if h.shape[1] in self.attention:
                    h = attend(h)
            if level > 0:
                batch, height, width, channels = h.shape
                h = jax.image.resize(h, (batch, 2 * height, 2 * width, channels), "nearest")
                h = nn.Conv(channels, (3, 3), dtype=dtype, kernel_init=fan_average)(h)

        h = nn.silu(group_norm(h.shape[-1], self.groups, dtype)(h))
        return nn.Conv(image_channels, (3, 3), kernel_init=zeros)(h.astype(jnp.float32))


def check_image_size(size: tuple[int, int], levels: int) -> None:
    """Raises UserError where `levels` levels, each half the size of the one before, do not divide height and width."""
    factor = 2 ** (levels - 1)
    if any(side % factor for side in size):
        fitting = 1 + min((side & -side).bit_length() - 1 for side in size)
        near = ", ".join(f"{a}x{b}" for a, b in _nearest(size, factor))
        raise UserError(
            f"The U-Net has {levels} levels (network.multipliers), so height and width must be divisible by {factor}, but the "
            f"images are {size[0]}x{size[1]}. Use at most {fitting} levels for this size, or images of {near}."
        )


def _nearest(size, factor):
    """The sizes next below and above whose sides the factor divides."""
    below = tuple(side - side % factor for side in size)
    above = tuple(side + -side % factor for side in size)
    return sorted({candidate for candidate in (below, above) if all(candidate)})
