"""Flax networks. A network: network.apply(params, x [B, ..., C], time [B], keys, condition) -> [B, ..., outputs C].

`outputs`, a field of every network, is 2 where a variance is learned. keys [B] address the randomness of dropout per example;
None means evaluation. condition: a pytree of arrays [B, ...]. These networks take labels [B] int32, where their field
`num_classes` is not 0, see `layers.add_labels`; those that are shown no condition need no such parameter.
"""

from collections.abc import Callable

from flax import linen as nn

from ddpm_jax.models.mlp import MLP
from ddpm_jax.models.simple_unet import SimpleUNet
from ddpm_jax.models.unet import UNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "simple_unet": SimpleUNet, "mlp": MLP}
