"""Flax networks. A network: network.apply(params, x [B, ..., C], time [B], keys [B] or None) -> [B, ..., outputs C].

`outputs`, a field of every network, is 2 where a variance is learned. `keys` address the randomness of dropout per example;
None means evaluation.
"""

from collections.abc import Callable

from flax import linen as nn

from ddpm_jax.models.mlp import MLP
from ddpm_jax.models.simple_unet import SimpleUNet
from ddpm_jax.models.unet import UNet

NETWORKS: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "simple_unet": SimpleUNet, "mlp": MLP}
