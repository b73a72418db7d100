"""The networks once more, in plain NumPy and float64, with loops for what the layers of Flax do at once.

The parameters are those of Flax, whose names count the layers of a kind in the order in which they are made.
"""

import math
from collections import Counter

import jax
import numpy as np


def filled(shapes, seed=0):
    """Parameters of these shapes without zeros, of a size at which the features neither grow nor vanish from layer to layer."""
    random = np.random.default_rng(seed)

    def fill(path, leaf):
        if path[-1].key in ("scale", "bias"):
            return np.float32((path[-1].key == "scale") + 0.3 * random.normal(size=leaf.shape))
        return np.float32(random.normal(size=leaf.shape) * math.sqrt(leaf.shape[-1] / math.prod(leaf.shape)))

    return jax.tree_util.tree_map_with_path(fill, shapes)


class Layers:
    """The layers of one module, by the names that Flax gives them."""

    def __init__(self, params):
        self.params, self.made = params, Counter()

    def next(self, kind):
        """The parameters of the next layer of this kind."""
        self.made[kind] += 1
        return self.params[f"{kind}_{self.made[kind] - 1}"]

    def all_used(self):
        return all(
            self.made[name.rpartition("_")[0]] > int(name.rpartition("_")[2]) for name in self.params if name[-1].isdigit()
        )


def silu(x):
    return x / (1 + np.exp(-x))


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def conv(params, x, stride=1, padding=((1, 1), (1, 1))):
    """The cross-correlation: y[i, j] = sum of kernel[a, b] x[stride i + a, stride j + b]; zeros around x."""
    kernel = np.asarray(params["kernel"], np.float64)
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], kernel.shape[:2], strict=True))
    y = np.zeros((len(x), height, width, kernel.shape[-1])) + params["bias"]
    for a in range(kernel.shape[0]):
        for b in range(kernel.shape[1]):
            y += x[:, a : a + stride * height : stride, b : b + stride * width : stride] @ kernel[a, b]
    return y


def group_norm(params, x, groups):
    """Mean 0 and variance 1 over the pixels and the channels of a group."""
    groups = math.gcd(groups, x.shape[-1])
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    parts = (parts - parts.mean((1, 3), keepdims=True)) / np.sqrt(parts.var((1, 3), keepdims=True) + 1e-6)
    return parts.reshape(x.shape) * params["scale"] + params["bias"]


def attend(params, query_tokens, tokens, heads):
    """Head by head: softmax of q k / sqrt(d) over the tokens, for single examples [N, C]."""
    assert params["query"]["kernel"].shape[1:] == (heads, tokens.shape[-1] // heads)
    result = np.zeros((len(query_tokens), params["out"]["kernel"].shape[-1])) + params["out"]["bias"]
    for head in range(heads):
        of_head = {name: {kind: np.asarray(w, np.float64)[..., head, :] for kind, w in params[name].items()} for name in QKV}
        query, key, value = (dense(of_head[name], x) for name, x in zip(QKV, (query_tokens, tokens, tokens), strict=True))
        scores = np.exp(query @ key.T / math.sqrt(query.shape[-1]))
        result += scores / scores.sum(1, keepdims=True) @ value @ params["out"]["kernel"][head]
    return result


QKV = ("query", "key", "value")


def sinusoids(time, dimension):
    """sin and cos of time / 10000^(k / (half - 1))."""
    half = dimension // 2
    angles = np.asarray(time, np.float64)[:, None] / 10_000 ** (np.arange(half) / (half - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


def fourier(time, dimension, scale):
    angles = 2 * np.pi * scale * np.asarray(time, np.float64)[:, None] * np.random.RandomState(0).standard_normal(dimension)
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


def dropped(x, rate, keys, layer):
    """x / (1 - rate) where the bits of (key, layer) keep it, else 0; a mask for each example."""
    if keys is None or not rate:
        return x
    kept = [jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:]) for key in keys]
    return np.where(np.stack(kept), x / (1 - rate), 0)


def add_labels(layers, embedding, labels, classes):
    return embedding + np.asarray(layers.next("Embed")["embedding"])[labels] if classes else embedding


# ------------------------------------------------------- halving and doubling


def halve(x):
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def double(x):
    return np.kron(x, np.ones((1, 2, 2, 1)))


def along(matrix, x):
    """The matrix applied to columns and to rows."""
    return np.einsum("ih,jw,bhwc->bijc", matrix(x.shape[1]), matrix(x.shape[2]), x)


def taps(rows, columns, places):
    """The matrix with places(i) = {j: weight} as its row i; outside there are zeros."""
    matrix = np.zeros((rows, columns))
    for i in range(rows):
        for j, weight in places(i).items():
            if 0 <= j < columns:
                matrix[i, j] = weight
    return matrix


def fir_halve(x):
    return along(lambda n: taps(n // 2, n, lambda i: {2 * i - 1: 1 / 8, 2 * i: 3 / 8, 2 * i + 1: 3 / 8, 2 * i + 2: 1 / 8}), x)


def fir_double(x):
    def places(i):
        return {i // 2: 3 / 4, i // 2 + (1 if i % 2 else -1): 1 / 4}

    return along(lambda n: taps(2 * n, n, places), x)


def fir_blur(x):
    return along(lambda n: taps(n + 1, n, lambda i: {i - 2: 1 / 8, i - 1: 3 / 8, i: 3 / 8, i + 1: 1 / 8}), x)


# ------------------------------------------------------- the networks


def heads_of(o, channels):
    return channels // o["head_channels"] if o["head_channels"] else o["heads"]


def self_attention(params, x, heads, groups, skip_rescale):
    tokens = group_norm(params["GroupNorm_0"], x, groups).reshape(len(x), -1, x.shape[-1])
    branch = np.stack([attend(params, example, example, heads) for example in tokens]).reshape(x.shape)
    return (x + branch) / (math.sqrt(2) if skip_rescale else 1)


def residual_block(params, x, embedding, o, channels, keys=None, layer=0, resample=lambda x: x):
    """o: the network's options."""
    layers = Layers(params)
    h = resample(silu(group_norm(layers.next("GroupNorm"), x, o["groups"])))
    h = conv(layers.next("Conv"), h)
    assert h.shape[-1] == channels
    of_time = dense(layers.next("Dense"), silu(embedding))[:, None, None]
    if o["scale_shift_norm"]:
        h = group_norm(layers.next("GroupNorm"), h, o["groups"]) * (1 + of_time[..., :channels]) + of_time[..., channels:]
    else:
        h = group_norm(layers.next("GroupNorm"), h + of_time, o["groups"])
    h = conv(layers.next("Conv"), dropped(silu(h), o["dropout"], keys, layer))
    x = resample(x)
    x = dense(params["shortcut"], x) if "shortcut" in params else x
    return (x + h) / (math.sqrt(2) if o["skip_rescale"] else 1)


def unet_encoder(params, o, x, time, keys=None, labels=None):
    """(h, skips, layers, block, attention) after the middle."""
    layers = Layers(params)
    embedding = sinusoids(time, o["channels"])
    if o["time_embedding"] == "fourier":
        embedding = fourier(time, o["channels"], o["fourier_scale"])
    embedding = dense(layers.next("Dense"), embedding)
    embedding = dense(layers.next("Dense"), silu(embedding))
    embedding = add_labels(layers, embedding, labels, o["num_classes"])
    fir = o["resampling"] == "fir"

    def block(h, channels, resample=lambda x: x):
        layer = layers.made["ResidualBlock"]
        return residual_block(layers.next("ResidualBlock"), h, embedding, o, channels, keys, layer, resample)

    def attention(h):
        heads = heads_of(o, h.shape[-1])
        return self_attention(layers.next("SelfAttention"), h, heads, o["groups"], o["skip_rescale"])

    def strided(h):
        return conv(layers.next("Conv"), fir_blur(h) if fir else h, 2, ((0, 0),) * 2 if fir else ((0, 1),) * 2)

    def down(h):
        return block(h, h.shape[-1], fir_halve if fir else halve) if o["residual_resample"] else strided(h)

    def up(h):
        larger = fir_double if fir else double
        return block(h, h.shape[-1], larger) if o["residual_resample"] else conv(layers.next("Conv"), larger(h))

    h, image = conv(layers.next("Conv"), x), x
    skips = [h]
    for level, multiplier in enumerate(o["multipliers"]):
        if level:
            h = down(h)
            if o["progressive_input"]:
                h = image = (strided(image) + h) / (math.sqrt(2) if o["skip_rescale"] else 1)
            skips.append(h)
        for _ in range(o["blocks"]):
            h = block(h, multiplier * o["channels"])
            h = attention(h) if h.shape[1] in o["attention"] else h
            skips.append(h)
    h = block(attention(block(h, h.shape[-1])), h.shape[-1])
    return h, skips, layers, block, attention, up


def unet(params, o, x, time, keys=None, labels=None):
    h, skips, layers, block, attention, up = unet_encoder(params, o, x, time, keys, labels)
    for level in reversed(range(len(o["multipliers"]))):
        for i in range(o["blocks"] + 1):
            h = block(np.concatenate([h, skips.pop()], -1), o["multipliers"][level] * o["channels"])
            if h.shape[1] in o["attention"] and (i == o["blocks"] or not o["single_up_attention"]):
                h = attention(h)
        h = up(h) if level else h
    out = conv(layers.next("Conv"), silu(group_norm(layers.next("GroupNorm"), h, o["groups"])))
    assert layers.all_used()
    return out


def classifier(params, o, x, time, keys=None):
    """The way down, the middle, and the attention of the mean to itself and to the pixels."""
    h, _, layers, *_ = unet_encoder(params, o, x, time, keys)
    h = silu(group_norm(layers.next("GroupNorm"), h, o["groups"]))
    pool = layers.next("AttentionPool")
    tokens = h.reshape(len(h), -1, h.shape[-1])
    tokens = np.concatenate([tokens.mean(1, keepdims=True), tokens], 1) + pool["places"]
    return np.stack([attend(pool, example[:1], example, heads_of(o, h.shape[-1]))[0] for example in tokens])


def simple_unet(params, o, x, time, keys=None, labels=None):
    layers = Layers(params)
    embedding = dense(layers.next("Dense"), sinusoids(time, o["channels"]))
    embedding = dense(layers.next("Dense"), silu(embedding))
    embedding = silu(add_labels(layers, embedding, labels, o["num_classes"]))
    stem, *widths = (o["channels"] * multiplier for multiplier in o["multipliers"])

    def block(h):
        layer, inner = layers.made["SimpleBlock"], Layers(layers.next("SimpleBlock"))
        h = silu(group_norm(inner.params["GroupNorm_0"], conv(inner.next("Conv"), h), o["groups"]))
        h = dropped(h + dense(inner.next("Dense"), embedding)[:, None, None], o["dropout"], keys, layer)
        return silu(group_norm(inner.params["GroupNorm_1"], conv(inner.next("Conv"), h), o["groups"]))

    def smaller(h):
        """A side n becomes ceil(n / 2), with the zeros that this takes on both ends, at the later one the odd one."""
        lacking = [max(-(-n // 2) * 2 + 2 - n, 0) for n in h.shape[1:3]]
        return conv(layers.next("Conv"), h, 2, [(n // 2, n - n // 2) for n in lacking])

    def larger(h):
        """Zeros between the pixels and two around them."""
        wide = np.zeros((len(h), 2 * h.shape[1] - 1, 2 * h.shape[2] - 1, h.shape[3]))
        wide[:, ::2, ::2] = h
        return conv(layers.next("ConvTranspose"), wide, 1, ((2, 2), (2, 2)))

    h, skips = conv(layers.next("Conv"), x), []
    for _ in widths:
        h = block(h)
        skips.append(h)
        h = smaller(h)
    for skip in reversed(skips):
        h = larger(h)[:, : skip.shape[1], : skip.shape[2]]
        h = block(np.concatenate([h, skip], -1))
    return conv(layers.next("Conv"), h, 1, ((0, 0), (0, 0)))


def mlp(params, o, x, time, keys=None, labels=None):
    layers = Layers(params)
    embedding = dense(layers.next("Dense"), sinusoids(time, o["channels"]))
    embedding = silu(add_labels(layers, embedding, labels, o["num_classes"]))
    angles = np.stack([2**k * np.pi * x for k in range(3)], -1).reshape(len(x), -1)
    h = dense(layers.next("Dense"), np.concatenate([x, np.sin(angles), np.cos(angles)], 1)) + dense(
        layers.next("Dense"), embedding
    )
    for layer in range(o["blocks"]):
        branch = dense(layers.next("Dense"), silu(h))
        branch = silu(branch + dense(layers.next("Dense"), embedding))
        h = h + dense(layers.next("Dense"), dropped(branch, o["dropout"], keys, layer))
    return dense(layers.next("Dense"), silu(h))
