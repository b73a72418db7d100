"""SIGTERM and Ctrl-C on the command line: a run ends at a whole step with a checkpoint, anything else ends at once.

    with listening():           # takes the signals over; main does
        prepare_data()          # a signal here prints a message and ends the process at once
        with deferred():        # a signal here waits
            while not asked():  # and is found here
                step()
                with at_once():
                    compile()   # nothing to save yet
        sample()                # not reached where one has come: leaving `deferred` raises Stopped

Exit codes are the shell's: 143 after SIGTERM, 130 after Ctrl-C. While a stop waits, another Ctrl-C ends the process at once. A
thread hears the signals, since the main thread may be inside a compiler for minutes. Without `listening`, as in a notebook,
Python's own handlers stay: SIGTERM kills and Ctrl-C raises KeyboardInterrupt wherever it strikes; the last checkpoint holds.
"""

import concurrent.futures
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ddpm_jax.terminal import say

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Signals belong to the process, and so does this: whether one must wait, and the one that does.
_lock = threading.RLock()
_waits = False
_asked = 0


class Stopped(Exception):
    """A run has ended at a signal, its checkpoint saved."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Takes SIGTERM and SIGINT over, but for those that the parent process had ignored (as `nohup` and `&` do in scripts)."""
    global _asked
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    mine = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in mine}
    before_fd = signal.set_wakeup_fd(writer.fileno())  # the number is written there whatever the main thread is doing
    threading.Thread(target=_hear, args=(reader,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        _asked = 0


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Within, a signal waits until it is `asked` for. Raises Stopped at the end where one came."""
    _set_waits(True)
    try:
        yield
    finally:
        _set_waits(False)
    if _asked:
        raise Stopped(_asked)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Within, inside `deferred`, a signal ends the process at once, also one that came before."""
    if _asked:
        leave(_asked)
    _set_waits(False)
    try:
        yield
    finally:
        _set_waits(True)


def asked() -> int:
    """The signal that waits, 0 where none does."""
    return _asked


def unless_asked(work: Callable[[], Any]) -> Any:
    """work(), done in a thread; None where a signal comes before it is done, which it is then left to itself."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def call():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    while not future.done() and not _asked:
        concurrent.futures.wait([future], timeout=0.1)
    return future.result() if future.done() else None


def leave(number: int) -> None:
    """Ends the process, whatever its threads are doing."""
    _tell(f"Stopped by {signal.Signals(number).name}. The same command goes on, with training from its last checkpoint.")
    sys.stdout.flush()
    os._exit(128 + number)


def _hear(reader: socket.socket) -> None:
    global _asked
    while heard := reader.recv(1):
        number = heard[0]
        with _lock:
            if number not in SIGNALS:
                continue
            if not _waits or (_asked and number == signal.SIGINT):
                leave(number)
            if not _asked:
                _asked = number
                _tell(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint (Ctrl-C: at once)")


def _set_waits(waits: bool) -> None:
    global _waits
    with _lock:
        _waits = waits


def _tell(text: str) -> None:
    say("", text, file=sys.stderr)
