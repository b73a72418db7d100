"""Results of single examples, as JSON lines that outlive a kill: a first line with the conditions, then one per example."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax import lines


def path_of(folder: Path, name: str, conditions: dict[str, Any]) -> Path:
    """NAME_<8 hexadecimal digits>.jsonl: other conditions, another file."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return folder / f"{name}_{digest[:8]}.jsonl"


def open_records(
    path: Path, conditions: dict[str, Any], fits: Callable[[dict[str, Any]], bool]
) -> dict[int, dict[str, Any]]:
    """The results so far by example, of a file that is now whole. Raises OSError, UserError.

    A line that a kill cut short is gone, and so is one that is damaged, which is told: its example is to be evaluated again.
    fits: whether the line of an example holds the results that it should, besides the example's number.
    """
    first = json.loads(json.dumps({"conditions": conditions}))
    found = lines.read(path, lambda values: values == first or (lines.is_whole(values.get("example")) and fits(values)))
    results = {values["example"]: values for values in found if values != first}
    lines.write(path, [first, *results.values()])
    return results


def append(path: Path, results: list[dict[str, Any]]) -> None:
    """Adds the results of some examples. Raises OSError."""
    lines.append(path, results)
