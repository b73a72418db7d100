"""Spaces: where diffusion happens. Samplers, losses and guidance never know; what speaks of images asks the space."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Space(NamedTuple):
    """shape: of x, one example's state. is_data: x are the data themselves, pixels in [-1, 1] or points.

    encode(frozen, images [B, H, W, C] in [-1, 1], keys [B]) -> x0 [B, *shape]; decode(frozen, x) -> images. frozen: parameters
    that are not trained, those of frozen() in a new run. log_volume(frozen) -> log |det d encode / d image|, in nats; None
    where encode is no bijection, so that a density of x is none of images.
    """

    shape: tuple[int, ...]
    encode: Callable[[Any, jax.Array, jax.Array], jax.Array]
    decode: Callable[[Any, jax.Array], jax.Array]
    log_volume: Callable[[Any], jax.Array] | None
    is_data: bool = False
    frozen: Callable[[], Any] = lambda: ()


def data(image_shape: tuple[int, ...]) -> Space:
    """The data as they are."""
    return Space(image_shape, lambda _, x, keys: x, lambda _, x: x, lambda _: 0.0, is_data=True)  # noqa: ARG005


def space_of(config, image_shape: tuple[int, ...]) -> Space:  # noqa: ARG001 - every space is made from a config
    """The space of a config's task."""
    return data(image_shape)
