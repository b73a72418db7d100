"""Layers that several networks share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# Ho et al. 2020 initialise uniformly by the fan average throughout, and with zeros where a layer ends a branch.
fan_average = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nn.initializers.zeros


def sinusoidal_embedding(time: jax.Array, dimension: int, max_period: float = 10_000.0) -> jax.Array:
    """[sin(w_k time), cos(w_k time)] with w_k = max_period^(-k / (dimension/2 - 1)). time: [B]. Returns [B, dimension].

    Vaswani et al. 2017 as used by Ho et al. 2020. dimension is even and at least 4.
    """
    half = dimension // 2
    frequencies = jnp.exp(-math.log(max_period) / (half - 1) * jnp.arange(half))
    angles = time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier_embedding(time: jax.Array, dimension: int, scale: float) -> jax.Array:
    """[sin(2 pi w_k time), cos(2 pi w_k time)] with w_k from N(0, scale^2). time: [B]. Returns [B, 2 dimension].

    Tancik et al. 2020, as used by Song et al. 2021 on log sigma with scale 16. The w_k are drawn once and for all, from the
    generator whose stream NumPy keeps as it is: constants of the program, the same in every run, in no checkpoint, and seen by
    no optimizer and no average.
    """
    frequencies = jnp.asarray(scale * np.random.RandomState(0).standard_normal(dimension), jnp.float32)
    angles = 2 * jnp.pi * time.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def add_labels(embedding: jax.Array, condition: jax.Array | None, num_classes: int) -> jax.Array:
    """The embedding of time [B, D] plus a learned one of labels [B] int32, the condition (Dhariwal & Nichol 2021,
    section 4 and code).

    Labels are 0 .. num_classes - 1 and the null label num_classes, of the unconditional model, which None stands for. Without
    classes the embedding stays as it is. The embedding of any other label is NaN.
    """
    if num_classes == 0:
        if condition is not None:
            raise ValueError("this network has no classes, so it takes no labels")
        return embedding
    labels = jnp.full(len(embedding), num_classes) if condition is None else condition
    table = nn.Embed(num_classes + 1, embedding.shape[-1], embedding_init=nn.initializers.normal(1.0), dtype=embedding.dtype)
    return embedding + table(labels)


def residual_sum(x: jax.Array, branch: jax.Array, rescale: bool) -> jax.Array:
    """x + branch; rescale: over sqrt 2, which leaves the variance of two independent summands as it was (Song et al. 2021)."""
    return (x + branch) * math.sqrt(0.5) if rescale else x + branch


def group_norm(channels: int, groups: int, dtype) -> nn.GroupNorm:
    """GroupNorm with at most `groups` groups that divide the channels; its statistics stay in float32."""
    return nn.GroupNorm(num_groups=math.gcd(groups, channels), epsilon=1e-6, dtype=dtype)


def dropout(x: jax.Array, rate: float, keys: jax.Array | None, layer: int) -> jax.Array:
    """Dropout whose mask for example b depends on (keys[b], layer) alone, not on the batch it stands in. x: [B, ...]."""
    if rate == 0.0 or keys is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def query_key_value(tokens: jax.Array, heads: int, dtype) -> tuple[jax.Array, ...]:
    """Three learned projections of tokens [B, N, C] onto the heads, [B, N, heads, C / heads] each; inside a compact module."""
    features = (heads, tokens.shape[-1] // heads)
    return tuple(
        nn.DenseGeneral(features, dtype=dtype, kernel_init=fan_average, name=name)(tokens) for name in ("query", "key", "value")
    )


class SelfAttention(nn.Module):
    """Residual self-attention over the pixels, normalised before and zero-initialised after. x: [B, H, W, C].

    skip_rescale: see residual_sum.
    """

    heads: int
    groups: int
    dtype: jnp.dtype
    skip_rescale: bool

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        h = group_norm(channels, self.groups, self.dtype)(x).reshape(batch, height * width, channels)
        h = jax.nn.dot_product_attention(*query_key_value(h, self.heads, self.dtype))
        h = nn.DenseGeneral(channels, axis=(-2, -1), dtype=self.dtype, kernel_init=zeros, name="out")(h)
        return residual_sum(x, h.reshape(x.shape), self.skip_rescale)
