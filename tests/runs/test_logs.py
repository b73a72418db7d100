import io
import json

import pytest
from tensorboardX.proto.event_pb2 import Event

from ddpm_jax import files
from ddpm_jax.errors import UserError
from ddpm_jax.plots import save_curve
from ddpm_jax.runs.logs import Log, read

LEVELS = (-10.0, 10.0)


def events(folder):
    """(tag, step, value) of the scalars and (purge steps) in the event files, by their format: length, crc, data, crc."""
    found, purged = [], []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                purged.append(event.step)
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return found, purged


def test_lines_and_events_hold_the_same(tmp_path):
    log = Log(tmp_path, 0)
    log.scalars(2, {"loss": 0.5, "loss_by_level": [0.25, None]}, LEVELS)
    assert read(tmp_path / "metrics.jsonl") == [{"step": 2, "loss": 0.5, "loss_by_level": [0.25, None]}]
    found, _ = events(tmp_path / "tensorboard")
    assert found == [("loss", 2, 0.5), ("loss_by_level/-5.0", 2, 0.25)]


def test_a_line_of_skipped_steps_alone_has_gaps(tmp_path):
    log = Log(tmp_path, 0)
    log.scalars(2, {"loss": None, "loss_by_level": None, "skipped": 2}, LEVELS)
    assert events(tmp_path / "tensorboard")[0] == [("skipped", 2, 2.0)]
    save_curve(tmp_path / "loss.png", [1, 2, 3], [0.5, None, 0.25])


def test_what_lies_past_the_restored_step_is_dropped(tmp_path):
    log = Log(tmp_path, 0)
    for step in (2, 4, 6, 8):
        log.scalars(step, {"loss": 0.1}, LEVELS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    Log(tmp_path, 6)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    assert 7 in events(tmp_path / "tensorboard")[1]


def test_a_damaged_line_costs_no_other(tmp_path):
    lines = ['{"step": 1, "loss": 0.5}', '{"step": 2, "lo\x00s": ', "[" * 100_000, "3", '{"step": 4, "loss": 0.25}', '{"step"']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    Log(tmp_path, 5)
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}, {"step": 4, "loss": 0.25}]


def test_metrics_that_cannot_be_written_stop_the_run(tmp_path, monkeypatch):
    log = Log(tmp_path, 0)
    monkeypatch.setattr(files, "open_to_append", lambda _: io.FileIO("/dev/full", "wb"))
    with pytest.raises(UserError, match="metrics cannot be written: .*No space left on device.*start the same command again"):
        log.scalars(2, {"loss": 0.5}, LEVELS)


def test_events_that_cannot_be_written_are_told_once(tmp_path, capsys):
    (tmp_path / "tensorboard").write_text("a file in the place of the folder")
    log = Log(tmp_path, 0)
    for step in (2, 4):
        log.scalars(step, {"loss": 0.5}, LEVELS)
    assert capsys.readouterr().out.count("The run goes on without") == 1 and len(read(tmp_path / "metrics.jsonl")) == 2
