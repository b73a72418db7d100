"""Whether tensorstore may read the arrays of a checkpoint, which may come from a stranger.

It unpacks the nodes of its database (OCDBT) whole, and parses JSON by recursion. A few bytes could take all of the memory, or
end the process by a signal, which no handler catches. So what it would unpack or parse is looked at here first.
"""

import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import tensorstore

from ddpm_jax import files

NODE_LIMIT = 2**29  # bytes of an unpacked node; orbax writes nodes of at most 10^8
HEAD_LIMIT = 2**16  # of the JSON that declares an array
HEADS = (".zarray", "zarr.json")  # of an array, in the two forms of zarr

_MAGIC = re.compile(rb"\x0c\xdb(?:\x3a\x2a|\x20\xde|\x12\x34)", re.DOTALL)  # of a manifest, a node, a node of versions
_ZSTD, _BLOCK = b"\x28\xb5\x2f\xfd", 2**17  # a frame of zstd, and what a block of it holds at most (RFC 8878)


def check(folder: Path) -> None:
    """Raises ValueError for a store that unpacks to too much or declares arrays in another way than orbax does.

    Raises OSError, KeyError and TypeError too, where its files are damaged.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.stat().st_size:
            with files.open_existing(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if max(unpacked(content), default=0) > NODE_LIMIT:
                    raise ValueError(f"{path.relative_to(folder)} unpacks to more than {NODE_LIMIT} bytes")
    base = {"driver": "file", "path": f"{folder.absolute()}/"}
    places = [base]  # the arrays lie in files or in the database: orbax asks _METADATA, which may say either
    if (folder / "manifest.ocdbt").exists():
        places.append({"driver": "ocdbt", "base": base})
    leaves = files.read_json(folder / "_METADATA")["tree_metadata"].values()  # not a list of the keys: it may have no end
    names = [".".join(part["key"] for part in leaf["key_metadata"]) for leaf in leaves]
    stores = [tensorstore.KvStore.open(place).result() for place in places]
    for head in [store.read(f"{name}/{form}") for store in stores for name in names for form in HEADS]:
        content = head.result().value
        if len(content) > HEAD_LIMIT:
            raise ValueError(f"an array is declared in {len(content)} bytes")
        if content:  # empty where it has the other form
            files.parse_json(content.decode())


def unpacked(content: mmap.mmap | bytes) -> Iterator[int]:
    """Of each packed manifest or node of the database in a file's content: how many bytes it unpacks to, at most.

    They are: magic, uint64 length, version, compression (1: zstd), the packed bytes. Unpacking stops at the end of the frame.
    """
    for match in _MAGIC.finditer(content):
        start = match.start()
        end = start + int.from_bytes(content[start + 4 : start + 12], "little")
        version, place = _varint(content, start + 12)
        compression, place = _varint(content, place)
        if end <= len(content) and (version, compression) == (0, 1):
            yield _BLOCK * _blocks(content, place)


def _blocks(content, place) -> int:
    """The blocks of a frame of zstd. Raises ValueError where there is none."""
    if content[place : place + 4] != _ZSTD or len(content) < place + 5:
        raise ValueError("a node of its database is packed in another way than zstd's")
    flags, count, last = content[place + 4], 0, 0
    alone = flags >> 5 & 1
    place += 5 + (1 - alone) + (0, 1, 2, 4)[flags & 3] + (alone, 2, 4, 8)[flags >> 6]
    while not last and place + 3 <= len(content):
        head = int.from_bytes(content[place : place + 3], "little")
        last, kind, size = head & 1, head >> 1 & 3, head >> 3
        place += 3 + (1 if kind == 1 else size)  # 1: one byte, repeated
        count += 1
    return count


def _varint(content, place) -> tuple[int, int]:
    """(a number in groups of 7 bits, the place behind it)."""
    value = 0
    for shift, byte in enumerate(content[place : place + 5]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, place + shift + 1
    return value, place + 5
