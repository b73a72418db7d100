"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from ddpm_jax.errors import UserError
from ddpm_jax.terminal import say


def duration(seconds: float) -> str:
    """75 -> "1m15s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes}m{seconds:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


class Progress:
    """Shows how much of `total` is done. Use as a context; call with the amount done so far and, if wanted, a few words."""

    def __init__(self, total: int, unit: str, done: int = 0, every_seconds: float = 10.0):
        self.total, self.unit, self.every = total, unit, every_seconds
        self.first, self.started = done, time.monotonic()
        self.last_line = self.started
        self.terminal = sys.stderr.isatty()
        self.bar = None  # appears with the first progress, after what is printed about compilation

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, done: int) -> None:
        """Moves the bar; without a terminal, prints a line if the last one is older than every_seconds."""
        if self.terminal:
            if self.bar is None:
                self.bar = tqdm(total=self.total, initial=self.first, unit=f" {self.unit}", leave=False, dynamic_ncols=True)
            self.bar.update(max(0, done - self.bar.n))
        elif time.monotonic() - self.last_line >= self.every and done > self.first:
            self.last_line = time.monotonic()
            self.line(f"{self.unit} {done}/{self.total}, {self.time_left(done)}")

    def restart(self, done: int) -> None:
        """Measures the pace from here on."""
        self.first, self.started = done, time.monotonic()

    def line(self, text: str) -> None:
        """Prints a line, above the bar where there is one."""
        if self.bar is not None:
            self.bar.clear()
        say(text)
        if self.bar is not None:
            self.bar.refresh()

    def time_left(self, done: int) -> str:
        """ "1m15s left", from the pace since the start."""
        if done >= self.total or done <= self.first:
            return "0s left" if done >= self.total else "time left not known yet"
        return f"{duration((self.total - done) * (time.monotonic() - self.started) / (done - self.first))} left"


class Stopwatch:
    """Seconds since the last restart, pauses left out."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.started = time.monotonic()

    def seconds(self) -> float:
        return max(time.monotonic() - self.started, 1e-9)

    @contextlib.contextmanager
    def paused(self):
        start = time.monotonic()
        yield
        self.started += time.monotonic() - start


@contextlib.contextmanager
def shown(wanted: bool, total: int, unit: str) -> Iterator["Report"]:
    """A report, to call with the amount done: `Progress` where it is wanted, else silent. UserError for no bool."""
    if not isinstance(wanted, bool):
        raise UserError(f"progress must be True or False, found {wanted!r}.")
    with Progress(total, unit) if wanted else contextlib.nullcontext(silent) as report:
        yield report


def silent(_: int) -> None:
    """Progress that shows nothing."""


Report = Callable[[int], None]
