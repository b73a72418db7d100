"""The log of a run: JSON lines in metrics.jsonl, the same scalars and the sample grids as TensorBoard events."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from ddpm_jax.training import run_directory


class Log:
    """Opens a run's log after `step` steps; whatever it holds past that step, from a run that was killed, is dropped."""

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        cut(self.path, step)
        self.writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, Any], levels: tuple[float, float]) -> None:
        """A JSON line; in TensorBoard each number, and loss_by_level under the middle of each level."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        for name, value in values.items():
            if not isinstance(value, list):
                if value is not None:
                    self.writer.add_scalar(name, value, step)
                continue
            edges = np.linspace(*levels, len(value) + 1)
            for middle, part in zip((edges[1:] + edges[:-1]) / 2, value, strict=True):
                if part is not None:
                    self.writer.add_scalar(f"{name}/{middle:.1f}", part, step)
        self.writer.flush()

    def grid(self, step: int, picture: np.ndarray) -> None:
        """A picture [h, w, 3] in TensorBoard."""
        self.writer.add_image("samples", picture, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics file; a last line that a kill left unfinished is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def cut(path: Path, step: int) -> None:
    """Drops the lines past a step."""
    if path.exists():
        kept = [json.dumps(values) + "\n" for values in read(path) if values["step"] <= step]
        run_directory.write_text(path, "".join(kept))
