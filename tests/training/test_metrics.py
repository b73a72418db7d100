"""The metrics of the steps since the last log line, without a training."""

import numpy as np
import pytest

from ddpm_jax.training.metrics import collect, summarise

NAN = np.nan


def calls(*losses, per_call=2):
    """Those of steps with these losses, `per_call` in each call; all other numbers follow from the loss."""
    steps = np.reshape(np.float32(losses), (-1, per_call))
    levels = np.stack([steps, 3 * steps], -1)
    return [
        {"loss": s, "grad_norm": 10 * s, "param_norm": 100 + s, "level_loss": level, "level_count": np.full_like(level, 2)}
        for s, level in zip(steps, levels, strict=True)
    ]


def test_refused_updates_are_left_out_and_counted():
    """And those in a row, which begin anew at each update and go on from call to call."""
    pending, skips = {}, {"skipped": 0, "skipped_in_a_row": 0}
    on_device = calls(1.0, NAN, NAN, 4.0, 5.0, NAN)
    assert collect(on_device, 6, pending, skips, limit=3) is None and not on_device
    assert pending["loss"] == [1, 4, 5] and pending["param_norm"] == [101, 104, 105]
    assert pending["level_loss"] == [[1, 3], [4, 12], [5, 15]] and skips == {"skipped": 3, "skipped_in_a_row": 1}
    assert collect([], 6, pending, skips, limit=3) is None
    told = collect(calls(NAN, NAN), 8, pending, skips, limit=3)
    assert told == "at step 8 not finite: the loss, the gradient, the updated parameters"
    assert skips == {"skipped": 5, "skipped_in_a_row": 3} and pending["loss"] == [1, 4, 5]


@pytest.mark.parametrize("name, words", [("loss", "the loss"), ("grad_norm", "the gradient"), ("param_norm", "the updated")])
def test_each_number_is_looked_at(name, words):
    (call,) = calls(1.0, 2.0)
    call[name][1] = np.inf
    assert f"at step 9 not finite: {words}" in collect([call], 9, {}, {"skipped": 0, "skipped_in_a_row": 0}, limit=1)


def test_a_line_has_the_means_over_its_steps():
    """The last norm of the parameters; by levels the mean over the losses that fell in, however many each step had there."""
    pending = {"loss": [1.0, 4.0], "grad_norm": [3.0, 5.0], "param_norm": [7.0, 8.0]}
    pending |= {"level_loss": [[1.0, 0.0, 6.0], [8.0, 0.0, 0.0]], "level_count": [[1, 0, 3], [2, 0, 0]]}
    by_level = {"loss_by_level": [3.0, None, 2.0]}
    assert summarise(pending) == {"loss": 2.5, "grad_norm": 4.0, "param_norm": 8.0} | by_level
    nothing = dict.fromkeys(["loss", "grad_norm", "param_norm", "loss_by_level"])
    assert summarise({name: [] for name in pending}) == nothing
