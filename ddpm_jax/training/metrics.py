"""The metrics of the steps since the last log line: brought to the host, checked, summarised."""

from typing import Any

import jax
import numpy as np

from ddpm_jax import lines

CHECKED = {"loss": "the loss", "grad_norm": "the gradient", "param_norm": "the updated parameters"}


def collect(calls: list[dict], step: int, pending: dict[str, list], skips: dict[str, int], limit: int) -> str | None:
    """Moves the metrics of the calls that led up to `step` to the lists `pending`, without those of refused updates.

    skips counts these: "skipped" in all, "skipped_in_a_row" since the last update. Returns None, or, where `limit` in a row
    were refused, which step was the last of them and what was not finite in it.
    """
    if not calls:
        return None
    steps = {name: np.concatenate([jax.device_get(call[name]) for call in calls]) for name in calls[0]}
    calls.clear()
    checks = np.isfinite([steps[name] for name in CHECKED])
    updated = checks.all(axis=0)
    for i in range(len(updated)):
        skips["skipped"] += int(not updated[i])
        skips["skipped_in_a_row"] = 0 if updated[i] else skips["skipped_in_a_row"] + 1
        if skips["skipped_in_a_row"] >= limit:
            what = ", ".join(words for words, finite in zip(CHECKED.values(), checks[:, i], strict=True) if not finite)
            return f"at step {step - len(updated) + i + 1} not finite: {what}"
    for name, values in steps.items():
        pending.setdefault(name, []).extend(values[updated].tolist())
    return None


def restored(notes: dict[str, Any]) -> tuple[dict[str, list], dict[str, int]]:
    """(pending, skips) of a checkpoint's notes. Raises KeyError, TypeError or ValueError where `collect` did not leave them."""
    pending, skips = {**notes["pending"]}, {name: notes[name] for name in ("skipped", "skipped_in_a_row")}
    for name, values in pending.items():
        rows = np.asarray(values)
        axes = 2 if name.startswith("level_") else 1
        if rows.shape != (0,) and (rows.dtype.kind not in "iuf" or rows.ndim != axes):
            raise ValueError(f"pending {name} is not an array of numbers with {axes} axes")
    for name, count in skips.items():
        if not lines.is_whole(count):
            raise ValueError(f"{name} is not a count")
    return pending, skips


def summarise(pending: dict[str, list]) -> dict[str, Any]:
    """Means over the steps since the last log line; of the parameters' norm the last value. None where no step made an update.

    loss_by_level: the mean loss in each tenth of the task's levels; None where none fell in.
    """
    if not pending["loss"]:
        return dict.fromkeys(["loss", "grad_norm", "param_norm", "loss_by_level"])
    loss, count = np.sum(pending["level_loss"], 0), np.sum(pending["level_count"], 0)
    return {
        "loss": float(np.mean(pending["loss"])),
        "grad_norm": float(np.mean(pending["grad_norm"])),
        "param_norm": pending["param_norm"][-1],
        "loss_by_level": [float(a / b) if b else None for a, b in zip(loss, count, strict=True)],
    }
