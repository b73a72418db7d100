"""Results of single examples, as JSON lines that outlive a kill: a first line with the conditions, then one per example."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from ddpm_jax import files


def path_of(folder: Path, name: str, conditions: dict[str, Any]) -> Path:
    """NAME_<8 hexadecimal digits>.jsonl: other conditions, another file."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return folder / f"{name}_{digest[:8]}.jsonl"


def open_records(path: Path, conditions: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The results so far by example, of a file that is now whole: a line that a kill cut short is gone."""
    path.parent.mkdir(exist_ok=True)
    results = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
            values = json.loads(line)
            results[int(values["example"])] = values
    lines = [{"conditions": conditions}, *results.values()]
    files.write_text(path, "".join(json.dumps(values) + "\n" for values in lines))
    return results


def append(path: Path, results: list[dict[str, Any]]) -> None:
    """Adds the results of some examples."""
    with path.open("a") as file:
        file.write("".join(json.dumps(values) + "\n" for values in results))
