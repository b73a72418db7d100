import json

from tensorboardX.proto.event_pb2 import Event

from ddpm_jax.plots import save_curve
from ddpm_jax.training.logs import Log, read

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
    log.close()
    assert read(tmp_path / "metrics.jsonl") == [{"step": 2, "loss": 0.5, "loss_by_level": [0.25, None]}]
    found, _ = events(tmp_path / "tensorboard")
    assert found == [("loss", 2, 0.5), ("loss_by_level/-5.0", 2, 0.25)]


def test_a_line_of_skipped_steps_alone_has_gaps(tmp_path):
    log = Log(tmp_path, 0)
    log.scalars(2, {"loss": None, "loss_by_level": None, "skipped": 2}, LEVELS)
    log.close()
    assert events(tmp_path / "tensorboard")[0] == [("skipped", 2, 2.0)]
    save_curve(tmp_path / "loss.png", [1, 2, 3], [0.5, None, 0.25])


def test_what_lies_past_the_restored_step_is_dropped(tmp_path):
    log = Log(tmp_path, 0)
    for step in (2, 4, 6, 8):
        log.scalars(step, {"loss": 0.1}, LEVELS)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    Log(tmp_path, 6).close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]
    assert 7 in events(tmp_path / "tensorboard")[1]
