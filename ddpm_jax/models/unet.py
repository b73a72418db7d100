"""The U-Net of Ho et al. 2020 (DDPM, appendix B), with the options of Dhariwal & Nichol 2021 (ADM, section 3 and appendix)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import SelfAttention, dropout, fan_average, group_norm, sinusoidal_embedding, zeros


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv; plus the time embedding; GroupNorm, SiLU, dropout, conv; plus the input.

    scale_shift_norm: the embedding scales and shifts the second GroupNorm's output instead. resample: what is done to the
    image, on the branch after its first SiLU and on the input.
    """

    channels: int
    groups: int
    dropout: float
    dtype: jnp.dtype
    scale_shift_norm: bool
    resample: Callable = lambda x: x

    @nn.compact
    def __call__(self, x, embedding, keys, layer):
        h = self.resample(nn.silu(group_norm(x.shape[-1], self.groups, self.dtype)(x)))
        x = self.resample(x)
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=fan_average)(h)
        width = 2 * self.channels if self.scale_shift_norm else self.channels
        of_time = nn.Dense(width, dtype=self.dtype, kernel_init=fan_average)(nn.silu(embedding))[:, None, None]
        norm = group_norm(self.channels, self.groups, self.dtype)
        if self.scale_shift_norm:
            scale, shift = jnp.split(of_time, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + of_time)
        h = dropout(nn.silu(h), self.dropout, keys, layer)
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=zeros)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, kernel_init=fan_average, name="shortcut")(x)
        return x + h


class UNet(nn.Module):
    """x [B, H, W, C], time [B], keys [B] or None -> [B, H, W, outputs C], float32.

    channels: of the first level; level i has channels * multipliers[i]. blocks: residual blocks per level (one more on
    the way up). attention: the feature-map heights with self-attention. Between levels a strided convolution halves the
    image and nearest-neighbour upsampling doubles it, so height and width must be divisible by 2^(levels - 1).
    dtype: of the computation; parameters, normalisation statistics and the output are float32.

    Of ADM: scale_shift_norm, see ResidualBlock; residual_resample, residual blocks with average pooling and nearest
    upsampling between levels; head_channels, the channels of one attention head (0: `heads` heads everywhere).
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    heads: int
    groups: int
    dropout: float
    dtype: str
    scale_shift_norm: bool = False
    residual_resample: bool = False
    head_channels: int = 0
    outputs: int = 1

    @nn.compact
    def __call__(self, x, time, keys=None):
        check_image_size(x.shape[1:3], len(self.multipliers))
        heights = [x.shape[1] >> level for level in range(len(self.multipliers))]
        if not set(self.attention) <= set(heights):
            raise UserError(
                f"network.attention is {self.attention}, but the feature maps of this network are "
                f"{', '.join(map(str, heights))} pixels high: give some of these, or () for none but the middle's."
            )
        dtype = jnp.dtype(self.dtype)
        options = dict(groups=self.groups, dropout=self.dropout, dtype=dtype, scale_shift_norm=self.scale_shift_norm)
        image_channels = x.shape[-1]

        embedding = sinusoidal_embedding(time, self.channels).astype(dtype)
        embedding = nn.Dense(4 * self.channels, dtype=dtype, kernel_init=fan_average)(embedding)
        embedding = nn.Dense(4 * self.channels, dtype=dtype, kernel_init=fan_average)(nn.silu(embedding))

        layers = iter(range(1_000_000))  # numbers the residual blocks, which address their dropout by it

        def block(h, channels, **resample):
            return ResidualBlock(channels, **options, **resample)(h, embedding, keys, next(layers))

        def attend(h):
            heads = h.shape[-1] // self.head_channels if self.head_channels else self.heads
            if heads == 0 or h.shape[-1] % heads or (self.head_channels and h.shape[-1] % self.head_channels):
                raise UserError(
                    f"Attention on {h.shape[-1]} channels cannot be divided into network.heads={self.heads} heads or, "
                    f"where it is not 0, heads of network.head_channels={self.head_channels} channels."
                )
            return SelfAttention(heads, self.groups, dtype)(h)

        def down(h):
            if self.residual_resample:
                return block(h, h.shape[-1], resample=halve)
            return nn.Conv(h.shape[-1], (3, 3), strides=2, dtype=dtype, kernel_init=fan_average)(h)

        def up(h):
            if self.residual_resample:
                return block(h, h.shape[-1], resample=double)
            return nn.Conv(h.shape[-1], (3, 3), dtype=dtype, kernel_init=fan_average)(double(h))

        h = nn.Conv(self.channels, (3, 3), dtype=dtype, kernel_init=fan_average)(x.astype(dtype))
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = down(h)
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
                h = up(h)

        h = nn.silu(group_norm(h.shape[-1], self.groups, dtype)(h))
        return nn.Conv(self.outputs * image_channels, (3, 3), kernel_init=zeros)(h.astype(jnp.float32))


def halve(x: jax.Array) -> jax.Array:
    """The means of 2x2 pixels."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


def double(x: jax.Array) -> jax.Array:
    """Each pixel four times."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def check_image_size(size: tuple[int, int], levels: int) -> None:
    """Raises UserError where `levels` levels, each half the size of the one before, do not divide height and width.

    Or where there are none, as of points.
    """
    if len(size) != 2:
        raise UserError(f"The U-Net takes images, but the data are points of {list(size)}: take --config.network.name=mlp.")
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
