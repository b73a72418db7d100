import pytest

from ddpm_jax import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("seconds, words", [(0.4, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (7380, "2h03m")])
def test_duration(seconds, words):
    assert progress.duration(seconds) == words


def test_lines_come_now_and_then_with_the_time_left(clock, capsys):
    with progress.Progress(100, "steps", every_seconds=10.0) as report:
        for done in (10, 20, 30, 40):
            clock[0] += 6
            report(done)
    assert capsys.readouterr().out == "steps 20/100, 48s left\nsteps 40/100, 36s left\n"


def test_the_pace_is_measured_from_the_restart(clock):
    report = progress.Progress(100, "steps", done=20)
    clock[0] = 50.0
    assert report.time_left(20) == "time left not known yet"
    report.restart(21)
    clock[0] = 60.0
    assert report.time_left(31) == "1m09s left" and report.time_left(100) == "0s left"


def test_a_terminal_has_a_bar_once_there_is_progress(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.Progress(4, "steps") as report:
        print("compiling...")
        assert not capsys.readouterr().err
        report(3)
        report(2)
        assert report.bar.n == 3
    assert "0/4" in capsys.readouterr().err


def test_stopwatch_leaves_pauses_out(clock):
    watch = progress.Stopwatch()
    clock[0] = 2.0
    with watch.paused():
        clock[0] = 10.0
    clock[0] = 11.0
    assert watch.seconds() == 3.0
