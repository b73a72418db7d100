import json
import shutil
import subprocess
import sys

import chex
import jax
import pytest

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.errors import UserError
from ddpm_jax.optimizers import OPTIMIZERS
from ddpm_jax.runs import checkpoints, history, jobs, run_directory

CHANGED = {"optim.learning_rate": [0.1, 0.2]}


def test_starts_that_bring_nothing_new_are_one_entry(monkeypatch):
    first = history.extended([], 0, ["smoke"], {}, {})
    assert history.extended(first, 5, ["smoke"], {}, {}) == first
    assert [e["step"] for e in history.extended(first, 5, ["smoke"], CHANGED, {})] == [0, 5]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "a b", "--config=x.py:smoke"])
    second = history.extended(first, 7, ["smoke"], {}, {})
    assert second[0] == first[0] and second[1]["command"] == "python -m 'a b' --config=x.py:smoke"
    assert second[1]["variants"] == ["smoke"] and second[1]["versions"]["jax"] and "changed" not in second[1]
    assert history.check(second) == second
    for strange in (None, {}, [3], [{}], [{"step": 1, "changed": 3}], [{"step": 1, "changed": {"a": [1]}}]):
        with pytest.raises(ValueError, match="no list of starts"):
            history.check(strange)


def test_the_commit_is_that_of_the_clone(monkeypatch, tmp_path):
    """With a word where files differ from it; none where there is no clone, or another's around this code."""

    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    module = tmp_path / "ddpm_jax" / "training" / "history.py"
    module.parent.mkdir(parents=True)
    module.write_text("x")
    monkeypatch.setattr(history, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert history.commit() == ""
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    assert len(history.commit()) == 40
    module.write_text("y")
    assert history.commit()[40:] == "+changes"
    inside = tmp_path / "venv" / "ddpm_jax" / "training" / "history.py"
    monkeypatch.setattr(history, "__file__", str(inside))
    inside.parent.mkdir(parents=True)
    assert history.commit() == ""
    monkeypatch.setenv("PATH", "")
    assert history.commit() == ""


def test_a_config_before_what_was_changed():
    entries = [{"step": 2, "changed": {"a": [1, 2]}}, {"step": 5}, {"step": 5, "changed": {"a": [2, 3], "gone": [0, 1]}}]
    assert [history.before({"a": 3}, entries, step)["a"] for step in (0, 2, 3, 5, 6)] == [1, 1, 2, 2, 3]


@pytest.fixture
def train(point_config, tmp_path, monkeypatch):
    """A function that trains in a folder, without samples, on one device: train(name, **{key: value})."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(jobs, "draw_and_write", lambda *_: None)
    point_config.train.update(steps=1, checkpoint_every=1, sample_every=0, keep_last=3)
    point_config.data.update(name="toy2d", num_examples=48)
    point_config.sampler.frames = 0

    def train(name, changes, variants=()):
        config = configs.unflatten(configs.flatten(point_config) | changes)
        configs.validate(config)
        jobs.train(config, tmp_path / name, variants)
        return json.loads((tmp_path / name / "config.json").read_text())

    return train


@pytest.mark.thorough
def test_a_run_that_starts_from_another_and_is_changed_on_purpose(train, tmp_path, capsys):
    """What it began with and what was changed is told, recorded, and no reason to refuse it; the other run may be gone then."""
    train("a", {"ema.decays": (0.5, 0.9), "sampler.ema": 1, "seed": 3})
    other = ddpm_jax.load(tmp_path / "a")
    saved = train("b", {"train.init": str(tmp_path / "a")}, ["smoke"])
    (start,) = saved["history"]
    assert start["step"] == 0 and start["variants"] == ["smoke"] and start["command"] and start["commit"] == history.commit()
    assert start["origin"] == {
        "run": str(tmp_path / "a"), "step": 1, "ema_decay": 0.9, "sha256": checkpoints.digest(other.params),
    }  # fmt: skip
    assert "starting from step 1 of " in capsys.readouterr().out
    shutil.copytree(tmp_path / "b", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "checkpoints" / "1")
    early = ddpm_jax.load(tmp_path / "early")  # with the checkpoint of step 0, whose parameters are the other run's
    chex.assert_trees_all_equal(other.params, early.state.params, early.params)
    assert early.state.step == 0

    longer = {"train.init": str(tmp_path / "a"), "train.steps": 2, "optim.learning_rate": 0.5}
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(UserError, match=r"optim.learning_rate: 0.0002 -> 0.5.*--config.train.allow_changes=true"):
        train("b", longer)
    with pytest.raises(UserError, match="network.channels: .*") as caught:
        train("b", longer | {"network.channels": 16})
    assert "allow_changes" not in str(caught.value)
    allowed = longer | {"train.allow_changes": True}
    for key, value in {"seed": 1, "network.channels": 16, "train.init": "", "loss.name": "hybrid"}.items():
        with pytest.raises(UserError, match=f"another config: {key}: [^;]*there -> here"):
            train("b", allowed | {key: value})
    saved = train("b", allowed)
    assert "changed on purpose from step 1 on: optim.learning_rate: 0.0002 -> 0.5" in capsys.readouterr().out
    assert saved["history"][0] == start and saved["history"][1]["step"] == 1 and len(saved["history"]) == 2
    assert saved["history"][1]["changed"] == {"optim.learning_rate": [0.0002, 0.5]}
    assert saved["config"]["optim.learning_rate"] == 0.5 and "train.allow_changes" not in saved["config"]
    assert ddpm_jax.load(tmp_path / "b", step=1).state.step == 1  # before the change: no other run
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "2")  # killed before the first checkpoint after it
    assert ddpm_jax.load(tmp_path / "b").state.step == 1
    train("b", longer)  # and continued: it was allowed once
    assert ddpm_jax.load(tmp_path / "b").state.step == 2
    saved["history"] = []
    (tmp_path / "b" / "config.json").write_text(json.dumps(saved))
    assert ddpm_jax.load(tmp_path / "b").state.step == 2
    with pytest.raises(UserError, match=r"step 1 .* with another config .*: optim.learning_rate: 0.0002 -> 0.5"):
        ddpm_jax.load(tmp_path / "b", step=1)
    saved["history"] = [{"step": "x"}]
    (tmp_path / "b" / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="its history is no list of starts"):
        ddpm_jax.load(tmp_path / "b")


def test_what_a_run_cannot_start_from(train, tmp_path):
    train("a", {"network.channels": 16})
    with pytest.raises(UserError, match=r"has another network than this one: the parameter .* is float32\[.* there, float32\["):
        train("b", {"train.init": str(tmp_path / "a")})
    with pytest.raises(UserError, match="There is no run in nowhere"):
        train("b", {"train.init": "nowhere"})
    assert not run_directory.exists(tmp_path / "b")


ALLOWED = {
    "optim.learning_rate": 0.5, "optim.warmup_steps": 3, "optim.b1": 0.5, "optim.b2": 0.5, "optim.eps": 1.0,
    "optim.clip_norm": 0.0, "loss.weighting": "min_snr", "train.batch_size": 64,
}  # fmt: skip
REFUSED = {
    "seed": 1, "task": "classifier", "optim.name": "other", "train.init": "runs/other", "loss.name": "hybrid",
    "network.dropout": 0.5, "process.steps": 2000, "prediction.name": "v", "ema.decays": (0.5,), "times.name": "stratified",
    "data.flip": True,
}  # fmt: skip


@pytest.mark.parametrize("key, value", [*ALLOWED.items(), *REFUSED.items()])
def test_on_purpose_is_changed_how_parameters_improve_not_what_they_are(key, value, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "other", OPTIMIZERS["adam"])
    saved, given = configs.base(), configs.unflatten(configs.flatten(configs.base()) | {key: value})
    assert len(configs.differences(saved, given)) == 1
    given.train.allow_changes = True
    assert len(configs.differences(saved, given)) == (key in REFUSED)


def test_the_meaning_of_the_networks_outputs_stays():
    """From the hybrid loss to the bound alone, but not to another learned variance."""
    saved = configs.base()
    saved.loss.name = "hybrid"
    given = configs.unflatten(configs.flatten(saved) | {"loss.name": "vlb", "train.allow_changes": True})
    assert configs.differences(saved, given) == []
    given.loss.variance = "learned"
    assert len(configs.differences(saved, given)) == 2
