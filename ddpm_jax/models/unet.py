"""The U-Net of Ho et al. 2020 (DDPM, appendix B), with the options of ADM, NCSN++ and DDPM++.

ADM: Dhariwal & Nichol 2021, section 3 and appendix. NCSN++ and DDPM++: Song et al. 2021 (score SDE), appendix H and code, and
Karras et al. 2022 (EDM), table 7 and code.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import (
    SelfAttention,
    add_labels,
    dropout,
    fan_average,
    fourier_embedding,
    group_norm,
    residual_sum,
    sinusoidal_embedding,
    zeros,
)
from ddpm_jax.models.resampling import RESAMPLING


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv; plus the time embedding; GroupNorm, SiLU, dropout, conv; plus the input.

    scale_shift_norm: the embedding scales and shifts the second GroupNorm's output instead. resample: what is done to the
    image, on the branch after its first SiLU and on the input. The input is projected by a 1x1 convolution where the number of
    channels changes, and with `projection` always. skip_rescale: see residual_sum.
    """

    channels: int
    groups: int
    dropout: float
    dtype: jnp.dtype
    scale_shift_norm: bool
    skip_rescale: bool
    projection: bool = False
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
        if self.projection or x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype, kernel_init=fan_average, name="shortcut")(x)
        return residual_sum(x, h, self.skip_rescale)


class UNet(nn.Module):
    """x [B, H, W, C], time [B], keys [B] or None, condition [B] or None -> [B, H, W, outputs C], float32.

    channels: of the first level; level i has channels * multipliers[i]. blocks: residual blocks per level (one more on
    the way up). attention: the feature-map heights with self-attention. Between levels a strided convolution halves the
    image and nearest-neighbour upsampling doubles it, so height and width must be divisible by 2^(levels - 1).
    dtype: of the computation; parameters, normalisation statistics and the output are float32. num_classes: where it is not 0,
    labels act wherever time does, see `layers.add_labels`.

    Of ADM: scale_shift_norm, see ResidualBlock; residual_resample, residual blocks that halve or double between levels;
    head_channels, the channels of one attention head (0: `heads` heads everywhere).

    Of DDPM++: skip_rescale, every residual sum over sqrt 2; resample_projection, see ResidualBlock, for those of
    residual_resample; single_up_attention, attention after a level's last block only on the way up. Of NCSN++ besides:
    time_embedding=fourier, random Fourier features of scale fourier_scale in place of sinusoids, for processes that show the
    network log sigma (ve, edm); resampling=fir, see resampling.py, for whatever halves or doubles; progressive_input, the
    image too is halved from level to level, by strided convolutions to the level's channels, and added to its features, the sum
    being what is halved next.

    NCSN++ divides its output by sigma, so that it is the score; as the prediction type eps, that is this network as it is.
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
    time_embedding: str = "sinusoidal"
    fourier_scale: float = 16.0
    skip_rescale: bool = False
    resampling: str = "box"
    resample_projection: bool = False
    progressive_input: bool = False
    single_up_attention: bool = False
    outputs: int = 1
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, time, keys=None, condition=None):
        h, skips, block, attend, up = encode(self, x, time, keys, condition)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.channels * multiplier)
                if h.shape[1] in self.attention and (i == self.blocks or not self.single_up_attention):
                    h = attend(h)
            if level > 0:
                h = up(h)

        h = nn.silu(group_norm(h.shape[-1], self.groups, jnp.dtype(self.dtype))(h))
        return nn.Conv(self.outputs * x.shape[-1], (3, 3), kernel_init=zeros)(h.astype(jnp.float32))


class Encoded(NamedTuple):
    """The features in the middle, those that are skipped to the way up, and what makes layers that know time and labels.

    block(h, channels), attend(h) and up(h), which doubles.
    """

    h: jax.Array
    skips: list[jax.Array]
    block: Callable
    attend: Callable
    up: Callable


def encode(unet: UNet, x: jax.Array, time: jax.Array, keys: jax.Array | None, condition: jax.Array | None) -> Encoded:
    """The U-Net's way down and its middle, as layers of the module in whose `__call__` this is called."""
    check_image_size(x.shape[1:3], len(unet.multipliers))
    heights = [x.shape[1] >> level for level in range(len(unet.multipliers))]
    if not set(unet.attention) <= set(heights):
        raise UserError(
            f"network.attention is {unet.attention}, but the feature maps of this network are "
            f"{', '.join(map(str, heights))} pixels high: give some of these, or () for none but the middle's."
        )
    dtype = jnp.dtype(unet.dtype)
    options = dict(groups=unet.groups, dropout=unet.dropout, dtype=dtype)
    options |= dict(scale_shift_norm=unet.scale_shift_norm, skip_rescale=unet.skip_rescale)
    halve, double, blur, padding = RESAMPLING[unet.resampling]
    embed = {"sinusoidal": sinusoidal_embedding, "fourier": partial(fourier_embedding, scale=unet.fourier_scale)}

    embedding = embed[unet.time_embedding](time, unet.channels).astype(dtype)
    embedding = nn.Dense(4 * unet.channels, dtype=dtype, kernel_init=fan_average)(embedding)
    embedding = nn.Dense(4 * unet.channels, dtype=dtype, kernel_init=fan_average)(nn.silu(embedding))
    embedding = add_labels(embedding, condition, unet.num_classes)

    layers = iter(range(1_000_000))  # numbers the residual blocks, which address their dropout by it

    def block(h, channels, **resample):
        return ResidualBlock(channels, **options, **resample)(h, embedding, keys, next(layers))

    def attend(h):
        heads = heads_of(unet, h.shape[-1])
        return SelfAttention(heads, unet.groups, dtype, unet.skip_rescale)(h)

    def strided(h, channels):
        return nn.Conv(channels, (3, 3), strides=2, padding=padding, dtype=dtype, kernel_init=fan_average)(blur(h))

    def down(h):
        if unet.residual_resample:
            return block(h, h.shape[-1], resample=halve, projection=unet.resample_projection)
        return strided(h, h.shape[-1])

    def up(h):
        if unet.residual_resample:
            return block(h, h.shape[-1], resample=double, projection=unet.resample_projection)
        return nn.Conv(h.shape[-1], (3, 3), dtype=dtype, kernel_init=fan_average)(double(h))

    image = x.astype(dtype)
    h = nn.Conv(unet.channels, (3, 3), dtype=dtype, kernel_init=fan_average)(image)
    skips = [h]
    for level, multiplier in enumerate(unet.multipliers):
        if level > 0:
            h = down(h)
            if unet.progressive_input:
                h = image = residual_sum(strided(image, h.shape[-1]), h, unet.skip_rescale)
            skips.append(h)
        for _ in range(unet.blocks):
            h = block(h, unet.channels * multiplier)
            if h.shape[1] in unet.attention:
                h = attend(h)
            skips.append(h)

    h = block(h, h.shape[-1])
    h = attend(h)
    return Encoded(block(h, h.shape[-1]), skips, block, attend, up)


def heads_of(unet: UNet, channels: int) -> int:
    """The attention heads on so many channels. Raises UserError where they do not divide."""
    heads = channels // unet.head_channels if unet.head_channels else unet.heads
    if heads == 0 or channels % heads or (unet.head_channels and channels % unet.head_channels):
        raise UserError(
            f"Attention on {channels} channels cannot be divided into network.heads={unet.heads} heads or, "
            f"where it is not 0, heads of network.head_channels={unet.head_channels} channels."
        )
    return heads


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
