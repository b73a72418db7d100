"""All use of several devices. Arguments are either the same on every device or split along their first axis."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import UserError

AXIS = "device"


def over_devices(f: Callable, devices: Sequence, in_axes, out_axes, donate: tuple[int, ...] = ()) -> Callable:
    """f as one device runs it, mapped over the devices. Axes: 0 for split [devices, ...], None for the same everywhere."""
    return jax.pmap(f, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate, devices=devices)


def on_one_device(f: Callable, in_axes, out_axes) -> Callable:
    """As `over_devices`, computed for all of them on one device: the same numbers but for rounding."""
    return jax.vmap(f, axis_name=AXIS, in_axes=in_axes, out_axes=out_axes)


def replicate(tree, devices: Sequence):
    """Copies every leaf to all the devices; its shape stays. The leaves passed in may share memory with the result."""
    return jax.device_put(tree, NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec()))


def split(array: np.ndarray, devices: Sequence, axis: int = 0) -> np.ndarray:
    """[..., B, ...] -> [devices, ..., B / devices, ...]: contiguous blocks of the axis, in device order."""
    return np.stack(np.split(array, len(devices), axis))


def check_divisible(batch_size: int, devices: Sequence, micro_batches: int) -> None:
    """Raises UserError where the devices do not divide the batch, or the micro-batches a device's part of it."""
    if batch_size % len(devices):
        raise UserError(
            f"train.batch_size is {batch_size} and there are {len(devices)} devices, which do not divide it: "
            f"take {batch_size // len(devices) * len(devices) or len(devices)} or another multiple of {len(devices)}."
        )
    local = batch_size // len(devices)
    if local % micro_batches:
        raise UserError(
            f"train.micro_batches is {micro_batches}, which does not divide the {local} examples that each device gets "
            f"(train.batch_size={batch_size} on {len(devices)}): take a divisor of {local}."
        )
