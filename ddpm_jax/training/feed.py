"""How the batches reach the devices: gathered there from a set that lies on them, or gathered on the host and sent."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ddpm_jax.data import Source, Streamed, prefetch
from ddpm_jax.training import parallel


def open_feed(
    source: Source | Streamed, rows_of: Callable[[int], np.ndarray], start: int, per_call: int, devices: Sequence
) -> tuple[tuple, Iterator[tuple[Any, np.ndarray]]]:
    """The arguments (data, indices) of each call of the step from step `start` on, endless; and which are split over devices.

    rows_of(k): the examples of batch k. Returns (axes, iterator), with axes as `parallel.over_devices` takes them. Both kinds
    give every device the same examples at the same step.
    """
    if isinstance(source, Source):
        return (None, 0), _from_device(source, rows_of, start, per_call, devices)
    return (0, None), _from_host(source, rows_of, start, per_call, devices)


def _rows(rows_of, step, per_call):
    return np.stack([rows_of(k) for k in range(step, step + per_call)])


def _from_device(source, rows_of, start, per_call, devices):
    data = parallel.replicate(source.arrays, devices)
    step = start
    while True:
        yield data, parallel.split(_rows(rows_of, step, per_call), devices, axis=1)
        step += per_call


def _from_host(source, rows_of, start, per_call, devices):
    """The data of a call are its batches alone, device after device and, in each, step after step."""

    def calls():
        step = start
        while True:
            yield parallel.split(_rows(rows_of, step, per_call), devices, axis=1).reshape(-1)
            step += per_call

    local = len(rows_of(start)) // len(devices)
    places = np.arange(per_call * local, dtype=np.int32).reshape(per_call, local)
    for batches in prefetch(source, calls()):
        yield {name: parallel.split(array, devices) for name, array in batches.items()}, places
