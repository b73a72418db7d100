"""What a run remembers of its data: a small dict that JSON holds, by which other data under the same name are noticed.

set: what the data are called, with their version. classes: the names of the classes, by their labels (absent where they have
none). What else it holds tells parts of the same set apart (split, examples) or other contents (files, digest).
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddpm_jax.terminal import shown

Identity = dict[str, Any]
SET = ("set", "classes")  # what two parts of one set have in common

_PROBED = 64  # examples that a digest is made of
_TOLD, _WIDE = 5, 60  # entries of a list, and characters of an entry, in messages


def class_names(identity: Identity) -> tuple[str, ...]:
    """By their labels; () where they are not known."""
    return tuple(identity.get("classes", ()))


def numbered(names: Sequence[str], limit: int = 20) -> str:
    """The names with their labels, as they are told; of many the first."""
    told = [f"{label} '{shown(name, _WIDE)}'" for label, name in enumerate(names[:limit])]
    return ", ".join(told + ["..."] * (len(names) > limit))


def natural(name: str) -> tuple:
    """A key to sort names by, in which 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def digest(*texts: bytes) -> str:
    """16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


def digest_of_examples(gather: Callable[[np.ndarray], dict[str, np.ndarray]], count: int, *, pixels: bool = True) -> str:
    """Of the labels, and the pixels, of some of `count` examples, evenly spaced: the same however the set is stored.

    pixels: False where decoding them may differ by a level between machines, as that of JPEGs.
    """
    batch = gather(np.unique(np.linspace(0, count - 1, min(count, _PROBED)).astype(np.int32)))
    return digest(*(np.ascontiguousarray(batch[name]).tobytes() for name in ("label", "image") if name == "label" or pixels))


def check(identity: Any, num_classes: int) -> Identity:
    """The identity, as it is. Raises ValueError for what a stranger's JSON may hold in its place."""
    if not isinstance(identity, dict):
        raise ValueError("data is no object")
    names = identity.get("classes", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("data.classes are no names")
    if names and len(names) != num_classes:
        raise ValueError(f"data.classes has {len(names)} names for {num_classes} classes")
    return identity


def differences(then: Identity, now: Identity, keys: Sequence[str] = ()) -> list[str]:
    """What differs, as "key: then -> now", of these keys, by default of all. Of a long list the first that do."""
    differing = []
    for key in keys or (then | now):
        old, new = (_entries(identity.get(key, ())) for identity in (then, now))
        told = [
            f"{shown(key, _WIDE)} {entry}".strip() + f": {old.get(entry, 'none')} -> {new.get(entry, 'none')}"
            for entry in old | new
            if old.get(entry) != new.get(entry)
        ]
        differing += told[:_TOLD] + [f"and {len(told) - _TOLD} more {key}"] * (len(told) > _TOLD)
    return differing


def _entries(value: Any) -> dict[str, str]:
    """Of a dict, a list or one value: what is shown of each entry, by its key."""
    if not isinstance(value, dict):
        value = dict(enumerate(value)) if isinstance(value, list | tuple) else {"": value}
    return {shown(key, _WIDE): shown(repr(entry), _WIDE) for key, entry in value.items()}
