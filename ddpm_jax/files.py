"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path beside this one to write to; what was written takes the place of `path` at the end, or vanishes with an error.

    The content is on the disk before the name is, so that no power cut leaves an empty file under it.
    """
    temporary = Path(path).with_name(Path(path).name + ".tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    with whole(path) as temporary:
        temporary.write_text(text)
