"""JSON lines with checksums: records that grow while a program runs, and whose damage is noticed.

A line is an object on a line of its own, as {"step": 2, "loss": 0.5, "sha256": "8d2f0c5e"}: the last field is the first 8
digits of the SHA-256 of the line without it. Lines of before have none, and are taken where they hold what they should.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ddpm_jax import files
from ddpm_jax.terminal import say

SUM = "sha256"
_NAMED = 5  # numbers of lines that a message names, at most


def append(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Adds lines. Raises OSError, and ValueError for numbers that are not finite."""
    with files.open_to_append(path) as file:
        file.write(_text(objects).encode())


def write(path: Path, objects: Iterable[dict[str, Any]]) -> None:
    """Replaces the file by these lines. Raises as `append`."""
    files.write_text(path, _text(objects))


def read(path: Path, fits: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The sound lines' objects, without the checksums; [] where there is no file. Raises Unreadable.

    fits: whether an object has the keys, and values of the types, that its reader needs. Lines that are damaged or do not fit
    are left out, and told; but not the last one where a kill has cut it short.
    """
    try:
        *whole, rest = files.read_text(path).split("\n")
    except files.Missing:
        return []
    sound = {number: _parsed(line, fits) for number, line in enumerate([*whole, rest], 1)}
    if bad := [number for number in range(1, len(whole) + 1) if sound[number] is None]:
        numbers = ", ".join(map(str, bad[:_NAMED])) + (", ..." if len(bad) > _NAMED else "")
        say(f"{path}: {len(bad)} of {len(whole)} lines are damaged and left out (line {numbers})")
    return [values for values in sound.values() if values is not None]


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and neither true nor false."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_whole(value: Any) -> bool:
    """Whether it is a whole number from 0 on that a computer counts with."""
    return type(value) is int and 0 <= value < 2**63


def _text(objects) -> str:
    return "".join(json.dumps(values | {SUM: _digits(values)}, allow_nan=False) + "\n" for values in objects)


def _digits(values) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]


def _parsed(line, fits) -> dict[str, Any] | None:
    """The object of a line; None where it is damaged or does not fit."""
    try:
        values = files.parse_json(line)
        if not isinstance(values, dict):
            return None
        digits = values.pop(SUM, None)
        return values if digits in (None, _digits(values)) and fits(values) else None
    except ValueError:
        return None
