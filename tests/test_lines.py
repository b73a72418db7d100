"""A line that is not what was written is noticed, whatever happened to it, and costs no other."""

import json

import pytest

from ddpm_jax import lines
from ddpm_jax.plots import save_curve
from ddpm_jax.runs import logs

ROWS = [{"step": step, "loss": 0.125 * step, "by": [None, 1.5], "rate": 1e-05} for step in range(1, 5)]


def anything(_):
    return True


def test_round_trip(tmp_path, capsys):
    lines.write(tmp_path / "a", ROWS[:2])
    lines.append(tmp_path / "a", ROWS[2:])
    assert lines.read(tmp_path / "a", anything) == ROWS and lines.read(tmp_path / "none", anything) == []
    assert all(set(json.loads(line)) == {*ROWS[0], lines.SUM} for line in (tmp_path / "a").read_text().splitlines())
    with pytest.raises(ValueError, match="not JSON compliant"):
        lines.append(tmp_path / "a", [{"loss": float("nan")}])
    assert lines.read(tmp_path / "a", anything) == ROWS and not capsys.readouterr().out


def test_a_flipped_bit_of_any_byte_is_noticed(tmp_path, capsys):
    """Of the second line: what is read is the others, and it too only where it says the same as before."""
    path = tmp_path / "a"
    lines.write(path, ROWS)
    content = path.read_bytes()
    start = content.index(b"\n") + 1
    end = content.index(b"\n", start)
    noticed = 0
    for place in range(start, end):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        found = lines.read(path, lambda values: set(values) == set(ROWS[0]))
        if found != ROWS:
            assert found == [ROWS[0], *ROWS[2:]]
            assert "are damaged and left out (line 2" in capsys.readouterr().out
            noticed += 1
    assert noticed > 0.9 * (end - start)  # the others: 1E-05


def test_a_line_that_a_kill_cut_short_is_not_told(tmp_path, capsys):
    lines.write(tmp_path / "a", ROWS)
    content = (tmp_path / "a").read_text()
    for length in range(len(content) - 60, len(content)):
        (tmp_path / "a").write_text(content[:length])
        assert lines.read(tmp_path / "a", anything)[:3] == ROWS[:3] and not capsys.readouterr().out


OLD = '{"step": 4, "loss": 0.25, "loss_by_level": [1, null], "skipped": 0}'


@pytest.mark.parametrize(
    "line",
    [
        OLD.replace('"loss"', '"lors"'), OLD.replace("0.25", "9e999"), OLD.replace("0.25", "NaN"), OLD.replace("0.25", "true"),
        OLD.replace("0.25", "1" + "0" * 400), OLD.replace("0.25", "1" + "0" * 5000), OLD.replace("0.25", '"a"'),
        OLD.replace("0.25", "[0.25]"), OLD.replace("1, null", '{"a": 1}'), OLD.replace("[1, null]", "[[1]]"),
        OLD.replace('"skipped": 0', '"skipped": {}'), OLD.replace("4,", "4.5,"), OLD.replace("4,", "-1,"),
        OLD.replace("4,", "null,"), OLD.replace('"step"', '"stop"'), OLD.replace("}", ', "sum": "8d2f0c5e"}'), "3", "[]",
        "null", "[" * 100_000, '{"a":' * 100_000, '{"sha256": []}', "\x1b[31m", "\xff", "",
    ],
)  # fmt: skip
def test_metrics_that_are_none(line, tmp_path, capsys):
    """Told once, for opening the log drops the line. Without a checksum, as of before, a line is judged by what it holds."""
    (tmp_path / "metrics.jsonl").write_text(f"{OLD}\n{line}\n{OLD}\n")
    log = logs.Log(tmp_path, 8)
    log.scalars(8, {"loss": None}, (0.0, 1.0))
    found = logs.read(tmp_path / "metrics.jsonl")
    assert found == [json.loads(OLD), json.loads(OLD), {"step": 8, "loss": None}]
    assert capsys.readouterr().out.count("1 of 3 lines are damaged and left out (line 2)") == 1
    save_curve(tmp_path / "loss.png", [row["step"] for row in found], [row["loss"] for row in found])


def test_a_lost_line_of_the_metrics_is_told_once(tmp_path, capsys):
    """The first, one between, or several; of a log that was continued too. The last ones cannot be missed."""
    path = tmp_path / "metrics.jsonl"
    for steps in ((2, 4, 6), (8, 10)):
        log = logs.Log(tmp_path, steps[0] - 2)
        for step in steps:
            log.scalars(step, {"loss": 0.5}, (0.0, 1.0))
    whole = path.read_text().splitlines(keepends=True)
    rows = [{"step": step, "loss": 0.5} for step in (2, 4, 6, 8, 10)]
    assert logs.read(path) == rows and not capsys.readouterr().out
    for lost, told in {(0,): "4", (2,): "8", (1, 2): "8", (1, 3): "6 and that of step 10"}.items():
        path.write_text("".join(line for place, line in enumerate(whole) if place not in lost))
        for _ in range(2):
            assert logs.cut(path, 10) == 10
        assert logs.read(path) == [row for place, row in enumerate(rows) if place not in lost]
        assert capsys.readouterr().out == f"{path}: before the line of step {told} others are missing\n"
    path.write_text(OLD + "\n" + OLD.replace("4,", "6,") + "\n")  # of before
    logs.Log(tmp_path, 6).scalars(8, {"loss": 0.5}, (0.0, 1.0))
    assert [row["step"] for row in logs.read(path)] == [4, 6, 8] and not capsys.readouterr().out
