"""Distributions of points in the plane, to try ideas on in seconds."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError

MOON_NOISE, RING_RADIUS, RING_NOISE, ROLL_NOISE = 0.03, 0.75, 0.05, 0.02
ROLL_START, ROLL_END = 1.5 * np.pi, 4.5 * np.pi  # angles at the ends of the swiss roll, whose radius is angle / ROLL_END
_SPLITS = {"train": 0, "test": 1}


class Draws:
    """Random numbers from raw 64-bit words of PCG64, the same with every version of NumPy (see `batch_indices`)."""

    def __init__(self, *seeds: int):
        self.bits = np.random.PCG64(np.random.SeedSequence(list(seeds)))

    def uniform(self, n: int) -> np.ndarray:
        """In [0, 1)."""
        return (self.bits.random_raw(n) >> np.uint64(11)) * 2.0**-53

    def integers(self, n: int, end: int) -> np.ndarray:
        """0 .. end - 1."""
        return (self.uniform(n) * end).astype(np.int32)

    def normal(self, n: int) -> np.ndarray:
        """Standard normal points [n, 2], by Box and Muller."""
        radius, angle = np.sqrt(-2 * np.log1p(-self.uniform(n))), 2 * np.pi * self.uniform(n)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def moons(draws: Draws, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Two half circles of radius 2/3 that reach into each other, with a little noise. The label is the moon."""
    moon, angle = draws.integers(n, 2), np.pi * draws.uniform(n)
    upper = np.stack([np.cos(angle) - 0.5, np.sin(angle) - 0.25], -1) / 1.5
    return np.where(moon[:, None] == 0, upper, -upper) + MOON_NOISE * draws.normal(n), moon


def ring(draws: Draws, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight equal Gaussians, evenly on a circle. The label is the Gaussian, counter-clockwise from the right."""
    mode = draws.integers(n, 8)
    angle = mode * (np.pi / 4)
    return RING_RADIUS * np.stack([np.cos(angle), np.sin(angle)], -1) + RING_NOISE * draws.normal(n), mode


def checkerboard(draws: Draws, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform on the eight dark fields of a 4 x 4 board on [-1, 1]^2. The label is the field, by rows from below."""
    field = draws.integers(n, 8)
    row, column = field // 2, 2 * (field % 2) + field // 2 % 2
    return (np.stack([column + draws.uniform(n), row + draws.uniform(n)], -1) - 2) / 2, field


def swiss_roll(draws: Draws, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A spiral of one and a half turns, with a little noise. The label is the quarter of its angle, from inside."""
    along = draws.uniform(n)
    angle = ROLL_START + (ROLL_END - ROLL_START) * along
    points = (angle / ROLL_END)[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return points + ROLL_NOISE * draws.normal(n), (4 * along).astype(np.int32)


class Pattern(NamedTuple):
    """draw(draws, n) -> (points [n, 2], labels [n]); labels lie in 0 .. num_classes - 1."""

    draw: Callable[[Draws, int], tuple[np.ndarray, np.ndarray]]
    num_classes: int


PATTERNS = {
    "moons": Pattern(moons, 2),
    "ring": Pattern(ring, 8),
    "checkerboard": Pattern(checkerboard, 8),
    "swiss_roll": Pattern(swiss_roll, 4),
}


def load(*, split: str, pattern: str = "moons", num_examples: int = 50_000, seed: int = 0) -> Source:
    """Points of a pattern of `PATTERNS`: "image" is float32 [num_examples, 2], about within [-1, 1].

    "train" and "test" are independent draws of the same size; each is a function of (pattern, seed, num_examples).

    Raises UserError for an unknown pattern or split, fewer than one example, or a negative seed.
    """
    if pattern not in PATTERNS:
        raise UserError(f"toy2d has the patterns {', '.join(PATTERNS)}; found pattern {pattern!r}.")
    if split not in _SPLITS:
        raise UserError(f"toy2d has the splits test, train; found split {split!r}.")
    if num_examples < 1:
        raise UserError(f"toy2d needs num_examples of at least 1; found {num_examples}.")
    if seed < 0:
        raise UserError(f"The seed of toy2d must be 0 or more; found {seed}.")
    points, labels = PATTERNS[pattern].draw(Draws(seed, _SPLITS[split]), num_examples)
    arrays = {"image": points.astype(np.float32), "label": labels.astype(np.int32)}
    identity = {"set": f"toy2d {pattern}", "split": split, "examples": num_examples, "seed": seed}
    return Source(arrays, PATTERNS[pattern].num_classes, identity)
