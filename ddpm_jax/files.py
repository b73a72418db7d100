"""The one place that opens files of run directories and files that users name, for reading and for writing.

* Only regular files are opened: a pipe would hang, a device or a socket is no data.
* In a run directory, which may be a stranger's, no link is followed, neither to a file nor to a folder.
* What is written appears whole or not at all.
* JSON and arrays are read within limits. Whatever is wrong with them is one kind of error, `Unreadable`.

Writing raises OSError, for the caller knows what its failure costs.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ddpm_jax.errors import UserError, first_line, tell_machine

TEXT_LIMIT = 2**30  # bytes of a text file that is read
JSON_LIMIT = 2**24  # of a JSON file
NESTING_LIMIT = 64  # lists and objects of JSON inside of each other
HEAD_LIMIT = 1000  # letters of an array's head in an .npz: Python's parser takes a long one for a lack of memory
ARRAYS_LIMIT = 2**31  # bytes of the arrays read from an .npz, decompressed
LEFT_OVER_AFTER = 3600.0  # seconds since the last write, from which on a temporary file is one of a process that was killed


class Unreadable(UserError):
    """A file cannot be read, or does not hold what it should. `reason` says why, in a few words."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path} cannot be read ({reason}). Put a sound copy in its place, or remove it.")
        self.reason = reason


class Missing(Unreadable):
    """There is no such file."""


def check_real(root: Path) -> None:
    """Raises UserError where a run directory, down to its folders' entries, holds a link, a pipe, a device or a socket."""
    for inside in (*root.glob("*"), *root.glob("*/*")):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile by the process that trains
            mode = inside.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise UserError(f"{inside} is a link, and a run directory must hold none: put there what it leads to.")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{inside} is a pipe, a device or a socket, and a run directory must hold none: remove it.")


def folder(root: Path, *names: str) -> Path:
    """The folder root/names of a run directory, made where it is missing. OSError where a name is a link or a file."""
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        root = root / name
        if root.is_symlink():
            raise _is_a_link(root)
        root.mkdir(exist_ok=True)
    return root


def open_existing(path: str | Path, *, follow: bool = False) -> BinaryIO:
    """A regular file, to read bytes from. Raises OSError. follow: whether it may be a link, as files that users name may."""
    return os.fdopen(_open(path, os.O_RDONLY, follow), "rb")


def open_to_append(path: str | Path) -> BinaryIO:
    """A regular file, made where it is missing, to write behind its end, or to read from. Raises OSError."""
    return os.fdopen(_open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, follow=False), "ab+")


Opens = Callable[[str | Path], contextlib.AbstractContextManager[BinaryIO]]  # a file of bytes to write, as `whole` gives it


class Together(NamedTuple):
    """Writes what appears together: `opens` is like `whole`; folder(path) makes an empty folder to fill."""

    opens: Opens
    folder: Callable[[Path], Path]


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file of bytes to write; it takes the place of `path` at the end, or vanishes with an error. Raises OSError.

    The content is on the disk before the name is, so that no power cut leaves an empty file under it. Each writer has a
    temporary name of its own, so that of two the last one wins.
    """
    with together() as at_once, at_once.opens(path) as file:
        yield file


@contextlib.contextmanager
def together() -> Iterator[Together]:
    """What is written takes its place at the end of this context, in turn, or all of it vanishes with an error."""
    written: list[tuple[Path, Path]] = []

    def begun(path):
        written.append((Path(path).with_name(f".{secrets.token_hex(8)}.tmp"), Path(path)))
        return written[-1][0]

    def fresh(path):
        temporary = begun(path)
        temporary.mkdir()
        return temporary

    @contextlib.contextmanager
    def open_one(path):
        temporary = begun(path)
        with os.fdopen(_open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, follow=False), "wb+") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    try:
        yield Together(open_one, fresh)
        for temporary, path in written:
            if temporary.is_dir() and path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
    finally:
        for temporary, _ in written:
            _remove(temporary)


def clear_left_over(folders: Iterable[Path]) -> None:
    """Removes the temporary files that killed processes left. Those that other processes write now stay."""
    for path in (path for folder in folders for path in folder.glob(".*.tmp")):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > LEFT_OVER_AFTER:
                _remove(path)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, opens: Opens = whole) -> None:
    """Writes a file, in UTF-8, that appears whole or not at all. Raises OSError."""
    with opens(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, content: Any, opens: Opens = whole) -> None:
    """As `write_text`, with an indent, for people read these files."""
    write_text(path, json.dumps(content, indent=2) + "\n", opens)


def read_text(path: str | Path, *, follow: bool = False, limit: int = TEXT_LIMIT) -> str:
    """The text of a file; bytes that are no UTF-8 become U+FFFD. Raises Unreadable, Missing where there is none."""
    with _readable(path), open_existing(path, follow=follow) as file:
        data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"it holds more than {limit} bytes")
        return data.decode("utf-8", "replace")


def read_json(path: str | Path, *, follow: bool = False, limit: int = JSON_LIMIT) -> Any:
    """What a JSON file holds. Raises Unreadable, Missing where there is none."""
    text = read_text(path, follow=follow, limit=limit)
    with _readable(path):
        return parse_json(text)


def parse_json(text: str) -> Any:
    """What a JSON text says. Raises ValueError for whatever is wrong with it."""
    try:
        content = json.loads(text)
    except RecursionError:
        content = NotImplemented
    level, depth = [content], 0
    while level := [inner for value in level for inner in _inside(value)]:
        depth += 1
        if depth > NESTING_LIMIT:
            break
    if content is NotImplemented or depth > NESTING_LIMIT:
        raise ValueError(f"it is nested more than {NESTING_LIMIT} deep")
    return content


class Head(NamedTuple):
    """What an array in an .npz is declared to be."""

    dtype: np.dtype
    shape: tuple[int, ...]


def read_npz(
    path: str | Path, choose: Callable[[dict[str, Head]], Iterable[str]], *, follow: bool = False, limit: int = ARRAYS_LIMIT
) -> dict[str, np.ndarray]:
    """Arrays of an .npz by name: those that choose(heads) names, which may raise where the heads are not as they should be.

    Nothing is unpickled, and nothing but the heads is read before `choose` has seen them. limit: bytes of the arrays.
    Raises Unreadable, Missing where there is no file, and what `choose` raises.
    """
    with _readable(path), open_existing(path, follow=follow) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        heads = {name: _head(archive, info) for name, info in members.items()}
        names = list(choose(heads))
        size = sum(_size(heads[name]) for name in names)
        if size > limit:
            raise ValueError(f"its arrays take {size} bytes, more than {limit}")
        arrays = {}
        for name in names:
            with archive.open(members[name]) as member:
                arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
        return arrays


def _head(archive, info) -> Head:
    """Of an array, whose declared shape must be that of the bytes that follow."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version != (1, 0):  # the others have heads of up to 4 GiB, and NumPy reads all of one before it looks at it
            raise ValueError(f"{info.filename} has format {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member, max_header_size=HEAD_LIMIT)
        head = Head(dtype, shape)
        if dtype.hasobject or min(shape, default=0) < 0 or member.tell() + _size(head) != info.file_size:
            raise ValueError(f"{info.filename} declares {dtype} {list(shape)}, which is not what it holds")
        return head


def _size(head: Head) -> int:
    size = head.dtype.itemsize
    for length in head.shape:  # Python's integers: a product of NumPy's may overflow
        size *= int(length)
    return size


def _inside(value) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


@contextlib.contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Whatever reading raises is an Unreadable."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise Missing(path, "there is no such file") from error
    except OSError as error:
        raise Unreadable(path, error.strerror or first_line(error)) from error
    except Exception as error:  # damaged files surface as anything: ValueError, BadZipFile, zlib.error, KeyError
        tell_machine(error)
        raise Unreadable(path, first_line(error)) from error


def _open(path, flags, follow) -> int:
    """A descriptor of a regular file. Looked at before it is opened, since opening a device may do something."""
    flags |= sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
    flags |= 0 if follow else getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(FileNotFoundError):
        _check_regular(path, os.stat(path, follow_symlinks=follow).st_mode)
    descriptor = os.open(path, flags, 0o666)
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path, mode):
    if stat.S_ISLNK(mode):
        raise _is_a_link(path)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "It is a pipe, a device or a socket, and not a file", str(path))


def _is_a_link(path) -> OSError:
    return OSError(errno.ELOOP, "It is a link, which is not followed", str(path))
