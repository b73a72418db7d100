"""The one place that prints, and through which whatever comes from outside goes: file names, configs, what damaged files hold.

A terminal obeys what it is shown: an escape sequence in a file's name can retitle it, or overwrite what stands there.
"""

import sys
from typing import TextIO

LIMIT = 1000  # characters of one thing from outside
LINE_LIMIT = 4000  # of a line


def shown(text: object, limit: int = LIMIT) -> str:
    """Text from outside in one line that can be printed: escaped where it steers a terminal, shortened where it is long.

    Bytes of file names that are no UTF-8, lone surrogates in Python, become U+FFFD.
    """
    text = str(text)
    if len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[-(limit // 2) :]}"
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def say(*lines: object, file: TextIO | None = None, end: str = "\n") -> None:
    """Prints lines at once, to standard output by default. Letters that the stream's encoding lacks are escaped."""
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    text = "\n".join(shown(line, LINE_LIMIT) for line in lines).encode(encoding, "backslashreplace").decode(encoding)
    print(text, file=file, end=end, flush=True)


def _escaped(letter: str) -> str:
    return "\N{REPLACEMENT CHARACTER}" if "\ud800" <= letter <= "\udfff" else letter.encode("unicode_escape").decode()
