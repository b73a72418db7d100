"""Signals, each in a small process of its own. What they do to a run is in test_survival.py."""

import subprocess
import sys
import time

import pytest

from ddpm_jax import signals

LISTEN = """
import os, signal, time
from ddpm_jax import signals
def send(number):
    os.kill(os.getpid(), number)
with signals.listening():
    {}
"""
BLOCKED = "import ctypes; send({}); ctypes.CDLL(None).sleep(60)"  # in C, as a compiler is: Python's own handlers would wait
UNTIL_ASKED = "\n        while not signals.asked():\n            time.sleep(0.001)"
SAVE = "print('saved', flush=True)"
DEFERRED = "with signals.deferred():\n        send({})" + UNTIL_ASKED + "\n        "
GRID = "print(signals.unless_asked(lambda: time.sleep(60)), flush=True)"

TABLE = {
    "outside, at once": (BLOCKED.format(15), 143, "Stopped by SIGTERM."),
    "outside, at once, Ctrl-C": (BLOCKED.format(2), 130, "Stopped by SIGINT."),
    "a step is finished first": (DEFERRED.format(15) + SAVE, 1, "saved"),
    "its end raises Stopped": (DEFERRED.format(2) + "pass", 1, "signals.Stopped: 2"),
    "a second Ctrl-C, at once": (DEFERRED.format(2) + BLOCKED.format(2), 130, "Stopped by SIGINT."),
    "Ctrl-C after SIGTERM, at once": (DEFERRED.format(15) + BLOCKED.format(2), 130, "Stopped by SIGINT."),
    "a second SIGTERM changes nothing": (DEFERRED.format(15) + "send(15); time.sleep(0.2); " + SAVE, 1, "saved"),
    "compiling": ("with signals.deferred(), signals.at_once():\n        " + BLOCKED.format(15), 143, "Stopped by SIGTERM."),
    "compiling after it came": (DEFERRED.format(15) + "with signals.at_once(): print('compiled')", 143, "Stopped by SIGTERM."),
    "a long work is left": ("with signals.deferred():\n        send(15)\n        " + GRID, 1, "None"),
}  # fmt: skip


HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # which background jobs of a shell ignore


@pytest.mark.parametrize("name", TABLE)
def test_what_a_signal_does(name):
    body, code, words = TABLE[name]
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HEARD + LISTEN.format(body)], capture_output=True, text=True, timeout=50)
    out = done.stdout + done.stderr
    assert done.returncode == code and words in out and "compiled" not in out, out
    assert time.monotonic() - start < 50  # those that sleep would sleep for 60 seconds


def test_signals_that_the_parent_ignores_stay_ignored():
    """As nohup and a shell's & do."""
    program = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    program += LISTEN.format("send(2); time.sleep(0.2); print('on')")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50).stdout == "on\n"


def test_work_gives_its_result_or_its_error():
    assert signals.unless_asked(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        signals.unless_asked(lambda: 1 // 0)


def test_pythons_handlers_come_back():
    import signal

    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with signals.listening():
        assert [signal.getsignal(number) for number in signals.SIGNALS] != before
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
