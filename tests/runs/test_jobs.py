"""What the command line's modes do with the data of a run, without training it."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import config as configs
from ddpm_jax import plots
from ddpm_jax.data import digits, folder
from ddpm_jax.diffusion.sample import Sampled
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import jobs as evaluation
from ddpm_jax.runs import jobs, run, run_directory, sampling
from ddpm_jax.tasks import build
from ddpm_jax.tasks.conditions import conditioning
from ddpm_jax.training import loop


class Began(Exception):
    """Training would begin."""


@pytest.fixture
def config(tmp_path, tiny_config, monkeypatch):
    """Of a folder with two classes. Training and restoring end where they would begin."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / name)
    tiny_config.data.update(name="folder", path=str(tmp_path / "images"), image_size=8)
    tiny_config.train.batch_size = tiny_config.train.micro_batches = 1
    tiny_config.sampler.frames = 0
    tiny_config.eval.update(bpd=True, split="train")

    def begin(*_, begin=None, **__):
        if begin:
            begin(0, {})
        raise Began

    monkeypatch.setattr(loop, "train", begin)
    monkeypatch.setattr(jobs.parallel, "check_divisible", lambda *_: None)
    monkeypatch.setattr(run, "restore", lambda *_: None)
    monkeypatch.setattr(evaluation.bits_per_dimension, "evaluate", begin)
    return tiny_config


def train(config, workdir):
    with pytest.raises(Began):
        jobs.train(config, workdir)


def evaluate(config, workdir):
    with pytest.raises(Began):
        evaluation.evaluate(config, workdir)


@pytest.mark.thorough
def test_a_run_remembers_its_data(config, tmp_path, capsys):
    train(config, tmp_path / "run")
    assert "labels: 0 'cat', 1 'dog'\n" in capsys.readouterr().out
    content = json.loads((tmp_path / "run/config.json").read_text())
    assert content["data"] == folder.load(split="train", path=config.data.path, image_size=8).identity
    assert content["data"]["classes"] == ["cat", "dog"]

    moved = shutil.move(config.data.path, tmp_path / "moved")
    config.data.path = str(moved)
    train(config, tmp_path / "run")
    evaluate(config, tmp_path / "run")

    shutil.copy(tmp_path / "moved/cat/1.png", tmp_path / "moved/dog/2.png")
    evaluate(config, tmp_path / "run")  # others of the same classes
    with pytest.raises(UserError, match="trained on other data: files dog: '1 files.* -> '2 files"):
        jobs.train(config, tmp_path / "run")

    (tmp_path / "moved/cat").rename(tmp_path / "moved/eel")
    for job in (jobs.train, evaluation.evaluate):
        with pytest.raises(UserError, match="classes 0: 'cat' -> 'dog'; classes 1: 'dog' -> 'eel' .there -> here"):
            job(config, tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["data"] == content["data"]


def test_a_run_of_before_takes_its_data_as_they_are_and_remembers_them(config, tmp_path):
    run_directory.write(tmp_path / "run", config, (8, 8, 1), 2)
    evaluate(config, tmp_path / "run")
    train(config, tmp_path / "run")
    assert run_directory.read(tmp_path / "run").data["classes"] == ["cat", "dog"]


def test_images_that_are_not_square(config, tmp_path):
    """They reach the run directory, and a network that keeps their shape."""
    config.data.image_size = (8, 12)
    train(config, tmp_path / "run")
    saved = run_directory.read(tmp_path / "run")
    assert saved.image_shape == (8, 12, 1) and saved.config.data.image_size == (8, 12)
    task = build(config, saved.image_shape)
    params = jax.eval_shape(task.init, jax.random.key(0))
    drawn = jax.eval_shape(task.sample, params, (), task.knobs, np.uint32(0), np.arange(3, dtype=np.int32))
    assert drawn.x.shape == (3, 8, 12, 1)
    assert plots.picture(np.zeros((4, 8, 12, 1))).shape[:2] == (2 * (4 * 8 + 2) + 2, 2 * (4 * 12 + 2) + 2)


def test_a_run_of_before_has_one_number_for_the_size(config, tmp_path):
    run_directory.write(tmp_path / "run", config, (8, 8, 1), 2)
    path = tmp_path / "run/config.json"
    content = json.loads(path.read_text())
    assert content["config"]["data.image_size"] == [8]
    content["config"]["data.image_size"] = 8
    path.write_text(json.dumps(content))
    train(config, tmp_path / "run")
    assert run_directory.read(tmp_path / "run").config.data.image_size == (8,)


def test_labels_of_samples_by_their_names(config, tmp_path):
    config.cond.labels, config.sampler.labels = True, ("dog",)
    train(config, tmp_path / "run")
    assert run_directory.read(tmp_path / "run").config.sampler.labels == ("dog",)
    config.sampler.labels = ("eel", "dog")
    with pytest.raises(UserError, match="has 'eel', but the labels of this run are 0 to 1 .0 'cat', 1 'dog'."):
        jobs.train(config, tmp_path / "run")


def test_labels_that_say_themselves_are_not_told(config, tmp_path, capsys):
    config.data.update(name="digits")
    train(config, tmp_path / "run")
    assert "labels:" not in capsys.readouterr().out
    assert run_directory.read(tmp_path / "run").data == digits.load(split="train").identity


def test_rows_of_samples_have_the_names_of_their_classes(tmp_path, parts_of):
    parts = parts_of(Sampled(np.zeros((4, 8, 8, 1), np.float32), 1, None))
    widths = []
    config = configs.base()
    config.cond.labels, config.sampler.labels = True, (1, 0)
    for names in ((), ("dog", "cat")):
        path, *_ = sampling.write_samples(tmp_path, "x", parts, {}, conditioning(config, 2, names))
        with Image.open(path) as picture:
            widths.append(picture.width)
    assert widths[0] + 20 < widths[1]
