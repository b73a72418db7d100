"""The log of a run: JSON lines in metrics.jsonl, the same scalars and the sample grids as TensorBoard events."""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from ddpm_jax import files, lines
from ddpm_jax.errors import UserError, remedy
from ddpm_jax.terminal import say

PREVIOUS = "previous"  # in each line: the step of the line before it, so that a lost line is noticed


class Log:
    """Opens a run's log after `step` steps; whatever it holds past that step, from a run that was killed, is dropped.

    metrics.jsonl is the record: where it cannot be written, the run stops with a UserError. Events and pictures can be drawn
    again from it and from the checkpoints: their failure is told once, and the run goes on.
    """

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        self.workdir = workdir
        self.events = f"events.out.tfevents.{time.time_ns() // 10**6}.{socket.gethostname()}"
        self.told = False
        with self._recording():
            self.last = cut(self.path, step)
        self._event(0, file_version="brain.Event:2")
        self._event(step + 1, session_log=SessionLog(status=SessionLog.START))  # viewers drop the steps from here on

    def scalars(self, step: int, values: dict[str, Any], levels: tuple[float, float]) -> None:
        """A JSON line; in TensorBoard each number, and loss_by_level under the middle of each level."""
        with self._recording():
            lines.append(self.path, [{"step": step, **values, PREVIOUS: self.last}])
        self.last = step
        scalars = {}
        for name, value in values.items():
            if not isinstance(value, list):
                if value is not None:
                    scalars[name] = value
                continue
            edges = np.linspace(*levels, len(value) + 1)
            for middle, part in zip((edges[1:] + edges[:-1]) / 2, value, strict=True):
                if part is not None:
                    scalars[f"{name}/{middle:.1f}"] = part
        self._event(step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]))

    def grid(self, step: int, picture: np.ndarray) -> None:
        """A picture [h, w, 3] in TensorBoard."""
        self._event(step, summary=summary.image("samples", picture, dataformats="HWC"))

    def sync(self) -> None:
        """Returns when the lines are on the disk: before a checkpoint, which must not outlive them in a power cut."""
        if self.path.exists():
            with self._recording(), files.open_to_append(self.path) as file:
                os.fsync(file.fileno())

    def _event(self, step: int, **content: Any) -> None:
        """Appends an event: length, its checksum, the event, its checksum (the TFRECORD form)."""
        data = Event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(data))
        parts = length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))
        try:
            with files.open_to_append(files.folder(self.workdir, "tensorboard") / self.events) as file:
                file.write(b"".join(parts))
        except OSError as error:
            self.tell(error)

    def tell(self, error: OSError) -> None:
        """Says that what can be made again could not be written; once."""
        if not self.told:
            say(f"warning: {error}. The run goes on without its pictures and TensorBoard events.")
        self.told = True

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"The metrics cannot be written: {error}. {remedy(error)}, then start the same command again: training "
                "continues from its last checkpoint."
            ) from error


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file, [] where there is none. What is damaged or missing is told. Raises UserError."""
    found, before, gaps = lines.read(path, _is_of_metrics), None, []
    for values in found:
        if values.pop(PREVIOUS, before) != before:
            gaps.append(values["step"])
        before = values["step"]
    if gaps:
        say(f"{path}: before the line of step {' and that of step '.join(map(str, gaps))} others are missing")
    return found


def cut(path: Path, step: int) -> int | None:
    """Drops the lines past a step, and those that are damaged. Returns the step of the last one; None where none is left."""
    kept = [values for values in read(path) if values["step"] <= step]
    steps = [None, *(values["step"] for values in kept)]
    if path.exists():
        lines.write(path, [values | {PREVIOUS: before} for values, before in zip(kept, steps, strict=False)])
    return steps[-1]


def _is_of_metrics(values) -> bool:
    """A step, and a loss, and by other names nothing but numbers, None for what was not measured, and lists of both."""
    flat = [inner for value in values.values() for inner in (value if isinstance(value, list) else [value])]
    numbers = all(value is None or lines.is_number(value) for value in flat)
    return numbers and lines.is_whole(values.get("step")) and "loss" in values and not isinstance(values["loss"], list)
