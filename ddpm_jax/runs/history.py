"""How a run came about besides by its config: the commands, the code and the packages that trained it, and changes on the way.

A history is a list of entries, one for each start of training that brought something new: the step and the time of it,
the command, the git commit, the variants, the versions of the packages; `changed`, {key: [before, after]}, where the config
was changed on purpose; `origin`, of train.init. Each checkpoint's notes hold the history up to it, config.json all of it.
"""

import datetime
import importlib.metadata
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "ml_collections", "tensorflow-datasets", "numpy")
WHEN = ("step", "time")

History = list[dict[str, Any]]


def extended(
    history: History, step: int, variants: Sequence[str], changed: dict[str, list], origin: dict[str, Any]
) -> History:
    """With an entry for a start of training at a step, unless it is like the one before and changes nothing."""
    entry = {
        "step": step,
        "time": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join(sys.orig_argv),
        "commit": commit(),
        "variants": list(variants),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        **({"changed": changed} if changed else {}),
        **({"origin": origin} if origin else {}),
    }
    last = [{key: value for key, value in entry.items() if key not in WHEN} for entry in (*history[-1:], entry)]
    same = len(last) == 2 and last[0] == last[1] and not changed
    return history if same else [*history, entry]


def commit() -> str:
    """The git commit of this code, with "+changes" where files differ from it; "" where the code is in no clone of its own."""
    root = Path(__file__).parents[2]

    def git(*words):
        words = ["git", "-C", str(root), *words]
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return ""
        return git("rev-parse", "HEAD") + "+changes" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return ""


def check(history: Any) -> History:
    """The history itself. Raises ValueError where it is none."""
    for entry in history if isinstance(history, list) else [None]:
        changed = entry.get("changed", {}) if isinstance(entry, dict) else None
        pairs = changed.values() if isinstance(changed, dict) else [None]
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs) or type(entry.get("step")) is not int:
            raise ValueError("its history is no list of starts")
    return history


def before(config: dict[str, Any], history: History, step: int) -> dict[str, Any]:
    """A flat config as it was up to a step: what was changed at that step, or later, is undone."""
    for entry in reversed(history):
        if entry["step"] >= step:
            config = config | {key: pair[0] for key, pair in entry.get("changed", {}).items() if key in config}
    return config
