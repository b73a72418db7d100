"""Parameters in a file of their own, in the layout of safetensors: for other programs, and back.

A file is the length of its header, 8 bytes, little-endian; the header, JSON: for each array by its name dtype, shape, and where
its bytes begin and end behind the header, and under `__metadata__` words about all of them; then the bytes of the arrays, the
last index running fastest. (https://huggingface.co/docs/safetensors, "Format".) Nothing in such a file is executed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ddpm_jax import files
from ddpm_jax.errors import UserError

ENDING = ".safetensors"
DTYPE = "F32"  # parameters are float32
HEADER_LIMIT = 2**26  # bytes
ABOUT = "__metadata__"


def write(path: str | Path, params: Any, about: Mapping[str, str]) -> Path:
    """Writes a tree of parameters, whole or not at all; params/Conv_0/kernel of Flax is Conv_0.kernel. about: words beside.

    Raises UserError for a path that does not end in .safetensors, OSError where it cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix != ENDING:
        raise UserError(f"Weights are exported as {ENDING}, found {str(path)!r}: give a path with that ending.")
    arrays = {name: np.asarray(array, "<f4") for name, array in _flat(params).items()}
    header, end = {ABOUT: dict(about)}, 0
    for name, array in arrays.items():
        header[name] = {"dtype": DTYPE, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with files.whole(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.tobytes())
    return path


def read(path: str | Path, like: Any) -> Any:
    """The parameters in a file, as a tree like that of `like`, whose names and shapes they must have.

    Raises UserError for a file that cannot be read, and for other names and shapes, before any array is read.
    """
    path, wanted = Path(path).expanduser(), _flat(like)
    try:
        with files.open_existing(path, follow=True) as file:
            header, begin = _header(file)
            entries = {name: entry for name, entry in header.items() if name != ABOUT}
            if differ := _difference(wanted, entries):
                raise UserError(f"{path} holds other parameters than the run: {differ}. Give those of a run of its config.")
            arrays = {name: _array(file, begin, entries[name]) for name in wanted}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}). Give a file as `run.export` writes it.") from error
    return unflatten_dict({tuple(key): arrays[".".join(key[1:])] for key in flatten_dict(like)})


def about(path: str | Path) -> dict[str, str]:
    """The words beside the parameters in a file. Raises UserError for one that cannot be read."""
    try:
        with files.open_existing(Path(path).expanduser(), follow=True) as file:
            return dict(_header(file)[0].get(ABOUT, {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}). Give a file as `run.export` writes it.") from error


def _header(file):
    """(the header, where the arrays begin)."""
    length = int.from_bytes(file.read(8), "little")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header is {length} bytes long")
    return files.parse_json(file.read(length).decode()), 8 + length


def _flat(params):
    """{"Conv_0.kernel": array}, in one order, without the collection's name, params."""
    return {".".join(key[1:]): array for key, array in sorted(flatten_dict(params).items())}


def _difference(wanted, entries) -> str:
    """What the first difference is, in words, or ""."""
    if missing := [*wanted.keys() - entries.keys(), *entries.keys() - wanted.keys()]:
        return f"{min(missing)} is in one of them only"
    for name, array in wanted.items():
        dtype, shape = entries[name]["dtype"], entries[name]["shape"]
        if dtype != DTYPE or shape != list(array.shape):
            return f"{name} is {dtype} {shape} and should be {DTYPE} {list(array.shape)}"
    return ""


def _array(file, begin, entry):
    first, last = entry["data_offsets"]
    count = int(np.prod(entry["shape"], dtype=object))
    if last - first != 4 * count or first < 0:
        raise ValueError(f"an array of {count} numbers is declared at the bytes {first} to {last}")
    file.seek(begin + first)
    return np.frombuffer(file.read(4 * count), "<f4").reshape(entry["shape"]).astype(np.float32)
