"""A residual perceptron for points."""

import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import add_labels, dropout, sinusoidal_embedding, zeros


class MLP(nn.Module):
    """x [B, D], time [B], keys [B] or None, condition [B] or None -> [B, outputs D], float32.

    The coordinates and their Fourier features sin, cos(2^k pi x), k = 0..2, which fine patterns need; then
    `blocks` residual blocks of width `channels`: SiLU, Dense, plus a projection of time, SiLU, dropout, Dense. No LayerNorm:
    points near the origin differ by their size, which it would take away.
    """

    channels: int
    blocks: int
    dropout: float
    dtype: str
    outputs: int = 1
    num_classes: int = 0

    @nn.compact
    def __call__(self, x, time, keys=None, condition=None):
        if x.ndim != 2:
            raise UserError(f"network.name=mlp takes points, but the data are images of {list(x.shape[1:])}: take unet.")
        dtype = jnp.dtype(self.dtype)
        embedding = nn.Dense(self.channels, dtype=dtype)(sinusoidal_embedding(time, self.channels).astype(dtype))
        embedding = nn.silu(add_labels(embedding, condition, self.num_classes))
        angles = (x[:, :, None] * jnp.pi * 2.0 ** jnp.arange(3)).reshape(len(x), -1)
        features = jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)
        h = nn.Dense(self.channels, dtype=dtype)(features.astype(dtype)) + nn.Dense(self.channels, dtype=dtype)(embedding)
        for layer in range(self.blocks):
            branch = nn.Dense(self.channels, dtype=dtype)(nn.silu(h))
            branch = nn.silu(branch + nn.Dense(self.channels, dtype=dtype)(embedding))
            branch = dropout(branch, self.dropout, keys, layer)
            h += nn.Dense(self.channels, dtype=dtype, kernel_init=zeros)(branch)
        return nn.Dense(self.outputs * x.shape[-1], kernel_init=zeros)(nn.silu(h.astype(jnp.float32)))
