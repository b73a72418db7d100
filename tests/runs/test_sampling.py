import contextlib
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax import config as configs
from ddpm_jax import images
from ddpm_jax.diffusion.sample import Sampled
from ddpm_jax.errors import UserError
from ddpm_jax.runs import jobs, sampling
from ddpm_jax.runs.parts import Parts
from ddpm_jax.tasks import build
from ddpm_jax.tasks.conditions import conditioning
from ddpm_jax.training import parallel
from ddpm_jax.training.step import State


@pytest.fixture
def params(tiny_config):
    """Of the tiny network, without its zeros."""
    params = jax.jit(build(tiny_config, (8, 8, 1)).init)(jax.random.key(0))
    return jax.tree.map(lambda x: x + 0.02, params)


def draw(config, params, devices=1, **sampler):
    config.sampler.update(**sampler)
    devices = jax.devices()[:devices]
    task = build(config, (8, 8, 1))
    return sampling.make_draw(task, config.sampler, devices)(parallel.replicate(params, devices), ())


@pytest.mark.thorough
def test_the_first_of_many_are_the_few(tiny_config, params):
    """6 samples, the first 4 of which are the 4 of a smaller run; in batches or at once, on one device, four or eight."""
    few, evaluations, _ = draw(tiny_config, params, num_samples=4, batch_size=64)
    assert few.shape == (4, 8, 8, 1) and evaluations == 5
    batches, _, _ = draw(tiny_config, params, num_samples=6, batch_size=4)
    np.testing.assert_allclose(batches[:4], few, atol=1e-4)
    for devices in (2, 4, 8):
        spread, _, _ = draw(tiny_config, params, devices=devices, num_samples=6, batch_size=64)
        assert batches.shape == spread.shape == (6, 8, 8, 1)
        np.testing.assert_allclose(spread, batches, atol=1e-4)
        levels = [images.to_uint8(x).astype(int) for x in (spread, batches)]
        assert np.abs(levels[0] - levels[1]).max() <= 1
    other_seed, _, _ = draw(tiny_config, params, num_samples=4, batch_size=64, seed=1)
    assert np.abs(other_seed - few).max() > 0.1


def test_progress_over_batches_and_inside_them(point_config):
    """It changes no bit; and programs without effects, as callbacks are, come from the compilation cache."""
    point_config.sampler.update(num_samples=4, batch_size=2, steps=100, name="ddim")
    task, devices = build(point_config, (2,)), jax.devices()[:1]
    params = jax.jit(task.init)(jax.random.key(0))
    told = []
    batches = sampling.make_batches(task, point_config.sampler, devices)
    told_of = [part.x for part in batches(params, (), told.append)]
    assert told[-1] == sampling.work(point_config.sampler, devices, task.knobs) == 200
    assert {100, 200} <= set(told) and len(told) > 20 and told == sorted(told)
    np.testing.assert_array_equal(told_of, [part.x for part in batches(params, ())])
    (second,) = batches(params, (), told.append, first=1)
    np.testing.assert_array_equal(second.x, told_of[1])
    np.testing.assert_array_equal([part.x for part in batches(params, (), seed=0)], told_of)  # 0 is that of the config
    assert not np.intersect1d(np.stack([part.x for part in batches(params, (), seed=1)]), told_of).size
    assert not jax.make_jaxpr(task.sample)(params, (), task.knobs, np.uint32(0), np.arange(2, dtype=np.int32)).effects


def test_files(tiny_config, tmp_path, parts_of):
    film = np.linspace(-1.2, 1.2, 5 * 4 * 64).reshape(5, 4, 8, 8, 1)
    paths = sampling.write_samples(tmp_path, "name", parts_of(Sampled(film[-1], 5, film)), {"seed": 3})
    assert [path.name for path in paths] == ["name.png", "name.npz", "name_trajectory.gif", "name_trajectory.png", "name.json"]
    assert json.loads(paths[-1].read_text()) == {"seed": 3, "files": [path.name for path in paths[:-1]]}
    with np.load(paths[1]) as stored:
        np.testing.assert_array_equal(stored["arr_0"], images.to_uint8(film[-1]))
    assert Image.open(paths[0]).size[0] > 2 * 48
    assert Image.open(paths[2]).n_frames == 5
    assert sampling.sample_name(tiny_config, 1000) == "step_00001000_ancestral5_seed0_n4"
    tiny_config.sampler.update(variance="fixed_small", clip="none")
    assert sampling.sample_name(tiny_config, 1000) == "step_00001000_ancestral5_clip_none_variance_fixed_small_seed0_n4"
    tiny_config.sampler.update(name="ddim", eta=0.5, clip="rederive")
    assert sampling.sample_name(tiny_config, 1000) == "step_00001000_ddim5_eta0.5_seed0_n4"
    tiny_config.ema.decays, tiny_config.sampler.ema = (0.99, 0.9995), 1
    assert sampling.sample_name(tiny_config, 1000) == "step_00001000_ddim5_eta0.5_ema0.9995_seed0_n4"
    tiny_config.ema.decays, tiny_config.sampler.ema, tiny_config.sampler.labels = (0.99,), 0, (0, 12)
    tiny_config.guidance.update(scale=2.5, weak="runs/small/")
    words = "labels_0-12_guidance_scale_2.5_guidance_weak_small-[0-9a-f]{8}"
    name = sampling.sample_name(tiny_config, 1000)
    assert re.fullmatch(f"step_00001000_ddim5_eta0.5_{words}_seed0_n4", name)
    tiny_config.guidance.weak = "other/small"
    assert sampling.sample_name(tiny_config, 1000) != name
    tiny_config.sampler.labels = tuple(range(100))
    assert len(sampling.sample_name(tiny_config, 1000)) < 120
    tiny_config.sampler.update(grid="explicit", times=(1.0, 0.5))
    assert "_times_1.0-0.5_" in sampling.sample_name(tiny_config, 1000)


def labels_of(told):
    config = configs.base()
    config.cond.labels, config.sampler.labels = True, told
    return conditioning(config, 10, ())


def test_files_of_samples_with_labels(tmp_path, parts_of):
    """Their labels beside them, and a row of the picture for each label, the short ones filled up."""
    grey = np.linspace(-1, 1, 8)
    parts = parts_of(Sampled(np.tile(grey[:, None, None, None], (8, 8, 1)), 5))
    paths = sampling.write_samples(tmp_path, "name", parts, {}, labels_of((4, 0, 7)))
    with np.load(paths[1]) as stored:
        assert stored["arr_1"].tolist() == [4, 0, 7, 4, 0, 7, 4, 0] and stored["arr_1"].dtype == np.int32
    with Image.open(paths[0]) as image:
        shown = np.asarray(image)[..., 0]
    step = shown.shape[0] // 3
    assert shown.shape[0] == shown.shape[1]
    shown = shown[step // 2 :: step, step // 2 :: step]
    levels = images.to_uint8(grey).tolist()
    assert shown.tolist() == [levels[0::3], levels[1::3], [*levels[2::3], 96]]


def test_points_are_scattered(tmp_path, parts_of):
    points = np.random.default_rng(0).normal(size=(3, 100, 2)).astype(np.float32) / 2
    paths = sampling.write_samples(tmp_path, "name", parts_of(Sampled(points[-1], 5, points)), {})
    with np.load(paths[1]) as stored:
        np.testing.assert_array_equal(stored["arr_0"], points[-1])
    assert Image.open(paths[0]).size == (320, 320)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_per_sample(channels, tmp_path, parts_of):
    """In batches of which the last is short; the picture shows 256 of them."""
    x = np.random.default_rng(0).uniform(-1, 1, (300, 48, 2, channels)).astype(np.float32)
    parts = parts_of(*(Sampled(x[i : i + 90], 5) for i in range(0, 300, 90)))
    paths = sampling.write_samples(tmp_path, "name", parts, {}, labels_of((0, 1)), way="png")
    assert [path.name for path in paths] == ["name.png", "name", "name.json"]
    assert sorted(path.name for path in paths[1].iterdir()) == [f"{i:06}.png" for i in range(300)]
    for i in (0, 89, 90, 299):
        with Image.open(paths[1] / f"{i:06}.png") as image:
            assert image.mode == ("L" if channels == 1 else "RGB")
            np.testing.assert_array_equal(np.asarray(image).reshape(48, 2, channels), images.to_uint8(x[i]))
    with Image.open(paths[0]) as image:
        assert image.size == (128 * 3 + 1, 2 * 49 + 1)
    sampling.write_samples(tmp_path, "name", parts, {}, way="png")  # again: in place of those that are there
    assert len(list(paths[1].iterdir())) == 300
    np.testing.assert_array_equal(parts.rows(np.array([299, 0, 90])), images.to_uint8(x[[299, 0, 90]]))


def test_points_are_no_images(point_config):
    """Refused before anything is trained or drawn."""
    point_config.sampler.save = "png"
    with pytest.raises(UserError, match=r"sampler.save=png is for images, but the data are of shape \[2\]: take npz"):
        build(point_config, (2,))


def test_a_kill_costs_one_batch(point_config, tmp_path, monkeypatch, capsys):
    """What was drawn before is not drawn again, the result is that of an unbroken run, and other settings are not mixed in."""
    point_config.sampler.update(num_samples=5, batch_size=2, frames=3, steps=4)
    task = build(point_config, (2,))
    params = jax.jit(task.init)(jax.random.key(0))
    state = State(step=np.int32(8), params=params, opt_state=(), ema=(params,))
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    add, added = Parts.add, []

    def draw(folder, kill_before=99):
        def add_until(parts, number, drawn):
            if number == kill_before:
                raise KeyboardInterrupt
            added.append(number)
            add(parts, number, drawn)

        monkeypatch.setattr(Parts, "add", add_until)
        added.clear()
        with contextlib.suppress(KeyboardInterrupt):
            jobs.draw_and_write(point_config, folder, task, state)
        return added.copy()

    def written(folder):
        assert not list((folder / "samples").glob("*.parts"))
        (file,) = (folder / "samples").glob("*.npz")
        with np.load(file) as stored:
            return stored["arr_0"], file.with_name(f"{file.stem}_trajectory.gif").read_bytes()

    assert draw(tmp_path / "whole") == [0, 1, 2]
    assert draw(tmp_path / "broken", kill_before=2) == [0, 1]
    (part,) = (tmp_path / "broken" / "samples").glob("*.parts/000001.npz")
    assert draw(tmp_path / "broken", kill_before=2) == [] and "4 of them are there from before" in capsys.readouterr().out
    part.write_bytes(part.read_bytes()[:-9])
    assert draw(tmp_path / "broken") == [1, 2]
    for whole, broken in zip(written(tmp_path / "whole"), written(tmp_path / "broken"), strict=True):
        np.testing.assert_array_equal(broken, whole)
    assert draw(tmp_path / "other", kill_before=1) == [0]
    state = state._replace(ema=(jax.tree.map(lambda x: x + 0.1, params),))
    assert "was stopped" not in capsys.readouterr().out
    (left := tmp_path / "other" / "samples" / "left.parts").mkdir()
    assert draw(tmp_path / "other") == [0, 1, 2]
    assert f"{left} holds samples of a command that still runs or was stopped: start" in capsys.readouterr().out
