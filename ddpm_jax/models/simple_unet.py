"""The small U-Net of beginners' tutorials."""

import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import add_labels, dropout, group_norm, sinusoidal_embedding, zeros


class SimpleBlock(nn.Module):
    """Two 3x3 convolutions, each followed by GroupNorm and SiLU, with a projection of time added between them."""

    channels: int
    groups: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, embedding, keys, layer):
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(x)
        h = nn.silu(group_norm(self.channels, self.groups, self.dtype)(h))
        h += nn.Dense(self.channels, dtype=self.dtype)(embedding)[:, None, None]
        h = dropout(h, self.dropout, keys, layer)
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(h)
        return nn.silu(group_norm(self.channels, self.groups, self.dtype)(h))


class SimpleUNet(nn.Module):
    """x [B, H, W, C], time [B], keys [B] or None, condition [B] or None -> [B, H, W, outputs C], float32. Any height and width.

    A stem of channels * multipliers[0], then one block down and one up for each further multiplier (64 and (1, 2, 4, 4) give
    the usual 64-128-256-256 with three of each). Strided convolutions lead down and transposed ones up; where a side is odd,
    the upsampled map is cropped to the skip that it is concatenated with.

    GroupNorm stands where tutorials often have BatchNorm: batch statistics would make a sample depend on the others of its
    batch, mix noise levels whose statistics differ, and behave otherwise in sampling than in training.
    """

    channels: int
    multipliers: tuple[int, ...]
    groups: int
    dropout: float
    dtype: str
    outputs: int = 1
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, time, keys=None, condition=None):
        if len(self.multipliers) < 2:
            raise UserError(f"simple_unet needs a stem and a block: two network.multipliers or more, found {self.multipliers}.")
        dtype = jnp.dtype(self.dtype)
        options = dict(groups=self.groups, dropout=self.dropout, dtype=dtype)
        output_channels = self.outputs * x.shape[-1]
        stem, *widths = (self.channels * multiplier for multiplier in self.multipliers)

        embedding = nn.Dense(4 * self.channels, dtype=dtype)(sinusoidal_embedding(time, self.channels).astype(dtype))
        embedding = nn.Dense(4 * self.channels, dtype=dtype)(nn.silu(embedding))
        embedding = nn.silu(add_labels(embedding, condition, self.num_classes))

        h = nn.Conv(stem, (3, 3), dtype=dtype)(x.astype(dtype))
        skips = []
        for layer, width in enumerate(widths):
            h = SimpleBlock(width, **options)(h, embedding, keys, layer)
            skips.append(h)
            h = nn.Conv(width, (4, 4), strides=2, dtype=dtype)(h)
        for layer, width in enumerate([*widths[-2::-1], stem], start=len(widths)):
            skip = skips.pop()
            h = nn.ConvTranspose(skip.shape[-1], (4, 4), strides=(2, 2), dtype=dtype)(h)
            h = jnp.concatenate([h[:, : skip.shape[1], : skip.shape[2]], skip], axis=-1)
            h = SimpleBlock(width, **options)(h, embedding, keys, layer)
        return nn.Conv(output_channels, (1, 1), kernel_init=zeros)(h.astype(jnp.float32))
