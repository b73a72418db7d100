"""The classifier of noised images that guides samples (Dhariwal & Nichol 2021, section 4 and appendix H)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.models.layers import group_norm, query_key_value, zeros
from ddpm_jax.models.unet import UNet, encode, heads_of


class Classifier(nn.Module):
    """x [B, H, W, C], time [B], keys [B] or None -> logits [B, classes], float32, which start at 0.

    The way down and the middle of a U-Net with the options of `unet`, GroupNorm, SiLU and attention pooling.
    """

    unet: UNet
    classes: int

    @nn.compact
    def __call__(self, x, time, keys=None):
        dtype = jnp.dtype(self.unet.dtype)
        h = encode(self.unet, x, time, keys, None).h
        h = nn.silu(group_norm(h.shape[-1], self.unet.groups, dtype)(h))
        return AttentionPool(self.classes, heads_of(self.unet, h.shape[-1]), dtype)(h)


class AttentionPool(nn.Module):
    """x [B, H, W, C] -> [B, outputs], float32: what the mean finds when it attends to itself and the pixels.

    Each with a learned embedding of its place (Radford et al. 2021 (CLIP), section 2.4, and code).
    """

    outputs: int
    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        tokens = x.reshape(batch, height * width, channels)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1)
        places = self.param("places", nn.initializers.normal(channels**-0.5), tokens.shape[1:])
        tokens = tokens + places.astype(self.dtype)
        query, key, value = query_key_value(tokens, self.heads, self.dtype)
        pooled = jax.nn.dot_product_attention(query[:, :1], key, value)[:, 0].astype(jnp.float32)
        return nn.DenseGeneral(self.outputs, axis=(-2, -1), kernel_init=zeros, name="out")(pooled)
