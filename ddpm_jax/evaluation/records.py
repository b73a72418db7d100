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
    results, text = {}, ""
    with contextlib.suppress(files.Missing):
        text = files.read_text(path)
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = files.parse_json(line)
            results[int(values["example"])] = values
    lines = [{"conditions": conditions}, *results.values()]
    files.write_text(path, "".join(json.dumps(values) + "\n" for values in lines))
    return results


def append(path: Path, results: list[dict[str, Any]]) -> None:
    """Adds the results of some examples."""
    with files.open_to_append(path) as file:
        file.write("".join(json.dumps(values) + "\n" for values in results).encode())
