import dataclasses
import json
import re
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

import ddpm_jax
from ddpm_jax import command, progress
from ddpm_jax.diffusion import likelihood
from ddpm_jax.diffusion.edit import img2img
from ddpm_jax.diffusion.grids import GRIDS, uniform
from ddpm_jax.diffusion.keys import Purpose, keys_of
from ddpm_jax.diffusion.sample import Sampled, encode, sample, sample_keys
from ddpm_jax.diffusion.samplers import BEST_GRIDS, SAMPLERS, ddim
from ddpm_jax.diffusion.transforms import clipped
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import bits_per_dimension
from ddpm_jax.images import to_model
from ddpm_jax.models import NETWORKS
from ddpm_jax.runs import jobs, resumable, run_directory
from ddpm_jax.runs import run as runs
from ddpm_jax.runs.run import restore
from ddpm_jax.tasks import build


class Toy(nn.Module):
    """A network that compiles at once, and in which a pixel sees its neighbours."""

    @nn.compact
    def __call__(self, x, time, keys=None):  # noqa: ARG002
        w = self.param("w", nn.initializers.normal(), (3,))
        return w[0] + jnp.tanh(x + w[1] + 0.3 * jnp.roll(x, 1, 1)) + w[2] * jnp.cos(time)[:, None, None, None]


@pytest.fixture
def workdir(tiny_config, tiny_source, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    tiny_config.network.name = "toy"
    run_directory.write(tmp_path / "run", tiny_config, (8, 8, 1))
    resumable.train(tiny_config, tmp_path / "run", build(tiny_config, (8, 8, 1)), tiny_source, jax.devices()[:1])
    return tmp_path / "run"


@pytest.mark.thorough
def test_a_loaded_run_samples_and_plugs_into_the_kernel(workdir):
    """run.sample is the kernel's sample with run.denoise, run.process and the run's clipping; frames end in the samples."""
    run = ddpm_jax.load(workdir)
    assert run.state.step == 8 and run.config.train.steps == 8
    images = run.sample(4, name="ddim", steps=6, eta=0.5, seed=3)
    assert images.shape == (4, 8, 8, 1) and images.dtype == np.float32

    times = uniform(run.process, steps=6)
    denoise = clipped(run.denoise, run.process)
    by_hand = sample(ddim(eta=0.5), denoise, run.process, times, sample_keys(3, jnp.arange(4)), (8, 8, 1))
    np.testing.assert_allclose(images, by_hand.x, atol=1e-4)

    film = run.trajectory(4, frames=5, name="ddim", steps=6, eta=0.5, seed=3)
    chex.assert_shape(film, (5, 4, 8, 8, 1))
    np.testing.assert_allclose(film[-1], images, atol=1e-4)
    chex.assert_trees_all_equal(run.params, run.state.ema[0])
    assert run.config.sampler.name == "ancestral"

    where = re.escape(repr(str(workdir)))
    assert re.fullmatch(rf"Run\({where}: diffusion of digits \[8 x 8 x 1\], toy, process linear, .* step 8\)", repr(run))

    run.sample(4, name="ddim", steps=np.int64(6), eta=1, seed=4)
    assert len(run.compiled) == 2  # one more for the film; eta and seed are arguments


@pytest.mark.thorough
def test_images_go_up_to_their_noises_and_down_again(workdir):
    """encode and decode are the kernel's with run.denoise, undone by each other but for the error of 200 steps; img2img too."""
    run = ddpm_jax.load(workdir)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    x = np.asarray(to_model(pictures))
    for name, tolerance in (("ddim", 0.2), ("heun", 0.02)):
        times = GRIDS[BEST_GRIDS[name]](run.process, steps=200)
        latents = run.encode(pictures, name=name, steps=200)
        by_hand = encode(SAMPLERS[name](), run.denoise, run.process, times[::-1], x)
        np.testing.assert_allclose(latents, by_hand.x, atol=2e-4)
        np.testing.assert_allclose(run.decode(latents, name=name, steps=200), x, atol=tolerance)

    grid, keys = uniform(run.process, steps=10), sample_keys(5, jnp.arange(3))
    near = img2img(ddim(eta=0.5), clipped(run.denoise, run.process), run.process, grid[grid <= 0.6], keys, x)
    np.testing.assert_allclose(run.img2img(x, 0.6, name="ddim", eta=0.5, steps=10, seed=5), near.x, atol=1e-4)

    for call, words in (
        (lambda: run.encode(pictures, eta=0.5), "cannot be encoded so: this sampler draws noise"),
        (lambda: run.decode(latents, eta=0.5), "cannot be decoded so: this sampler draws noise"),
        (lambda: run.img2img(x, 0.3, name="ddim", steps=10, frames=5), "cannot be sampled so: frames must be 0 or"),
        (lambda: run.encode(x, until=0.5), "no config key 'sampler.until'"),
        (lambda: run.sample(3, up=True), "no config key 'sampler.up'"),
        (lambda: run.sample(3, name="heun", eta=0.7), "sampler.eta does not apply to sampler.name=heun"),
        (lambda: run.inpaint(x, x[0, ..., 0] > 0, method="dps", resamplings=5), "inpaint.resamplings does not apply"),
    ):
        with pytest.raises(UserError, match=words):
            call()
    run.config.sampler.update(name="ddim", eta=1.0)  # which encoding does not look at
    again = run.encode(pictures, steps=200)
    np.testing.assert_allclose(again, run.encode(pictures, name="ddim", eta=0.0, steps=200), atol=1e-5)
    with pytest.raises(UserError, match=r"The images to encode must be of .* shape, \[N, 8, 8, 1\], found \[3, 8, 7, 1\]"):
        run.encode(pictures[:, :, :7])
    with pytest.raises(UserError, match="The images must be uint8, or floats from -1 to 1, found float64"):
        run.img2img(2.0 * x.astype(float), 0.5)
    with pytest.raises(UserError, match=r"until must be a time from the earliest of the grid, 0.001, to t_max, 1, found 1.5"):
        run.img2img(x, 1.5)
    with pytest.raises(UserError, match="until must be a time .* found '0.5'"):
        run.img2img(x, "0.5")
    with pytest.raises(UserError, match="until must be a time, found None"):
        run.img2img(x, None)
    with pytest.raises(UserError, match=r"The noises must be of the run's shape"):
        run.decode(latents[0])
    for wrong in (pictures, np.where(latents > 0, np.nan, latents), np.where(latents > 0, np.inf, latents)):
        with pytest.raises(UserError, match="The noises must be finite floats, found"):
            run.decode(wrong)
    with pytest.raises(UserError, match="The number of samples is the first argument"):
        run.sample(3, num_samples=5)
    with pytest.raises(UserError, match="save is of the files that --mode=sample writes"):
        run.sample(3, save="png")


def test_what_is_drawn_of_which_average(point_config, tmp_path, monkeypatch):
    """That which sampler.ema names, in Python and by the command. What is to be undone has no clipping, noise or denoising."""
    told, averages = [], tuple({"w": np.full(1, value)} for value in (0.0, 1.0))
    point_config.ema.decays, point_config.sampler.ema = (0.9, 0.5), 1
    point_config.sampler.update(name="ddim", eta=0.5, clip="rederive", num_samples=2, batch_size=2, frames=0)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    task, state = build(point_config, (2,)), SimpleNamespace(step=3, ema=averages, frozen=())

    def make(task, sampler, devices):  # noqa: ARG001
        def draw(params, frozen, report, knobs, *_, **__):  # noqa: ARG001
            told.append((float(params["w"][0]), sampler.name, sampler.eta, sampler.last, sampler.clip))
            return Sampled(np.zeros((2, 2), np.float32), 1)

        return draw

    monkeypatch.setattr(runs.sampling, "make_draw", make)
    monkeypatch.setattr(runs.sampling, "make_batches", lambda *of: lambda *args, **_: [make(*of)(*args)])
    run, points = runs.Run(None, point_config, (2,), 0, task, state), np.zeros((2, 2), np.float32)
    assert run.params is averages[1]
    for call in (run.encode, run.decode):
        call(points)
        assert told.pop() == (1.0, "ddim", 0.0, "stop", "none")
    for call, average in ((lambda: run.sample(2), 1.0), (lambda: run.sample(2, ema=0), 0.0)):
        call()
        assert told.pop() == (average, "ddim", 0.5, "denoise", "rederive")
    jobs.draw_and_write(point_config, tmp_path, task, state)
    assert told.pop()[0] == 1.0


@pytest.mark.thorough
def test_every_average_can_be_sampled(point_config, point_source, tmp_path):
    """By number; the run's config names the one of `params`. Another costs no compilation."""
    point_config.ema.decays = (0.9, 0.0)
    point_config.optim.learning_rate = 0.1
    run_directory.write(tmp_path, point_config, (2,))
    resumable.train(point_config, tmp_path, build(point_config, (2,)), point_source, jax.devices()[:1])
    run = ddpm_jax.load(tmp_path)
    first, second = run.sample(4), run.sample(4, ema=1)
    assert np.abs(first - second).max() > 1e-3 and len(run.compiled) == 1
    np.testing.assert_array_equal(first, run.sample(4, ema=0))
    run.config.sampler.ema = 1
    np.testing.assert_array_equal(second, run.sample(4))
    chex.assert_trees_all_equal(run.params, run.state.ema[1])
    with pytest.raises(UserError, match="sampler.ema is 2"):
        run.sample(4, ema=2)


@pytest.mark.thorough
def test_a_checkpoint_before_the_newest(point_config, point_source, tmp_path):
    """Loaded, sampled and evaluated by its step; the newest where none is named."""
    point_config.train.update(steps=4, checkpoint_every=2, keep_last=3)
    point_config.sampler.update(num_samples=4, frames=0, steps=2)
    run_directory.write(tmp_path, point_config, (2,))
    newest = resumable.train(point_config, tmp_path, build(point_config, (2,)), point_source, jax.devices()[:1])
    run = ddpm_jax.load(tmp_path, step=2)
    assert run.state.step == 2 and newest.step == ddpm_jax.load(tmp_path).state.step == 4
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (run.params, newest.ema[0])), strict=True))

    config, _ = command.resolve("", str(tmp_path), "sample", [("sampler.checkpoint", "2")])
    jobs.sample(config, tmp_path)
    (path,) = (tmp_path / "samples").glob("step_00000002_*.npz")
    assert "checkpoint" not in path.name and json.loads(path.with_suffix(".json").read_text())["checkpoint_step"] == 2
    config, _ = command.resolve("", str(tmp_path), "eval", [("sampler.checkpoint", "2")])
    assert bits_per_dimension.conditions_of_the_ode(restore(tmp_path, config))["checkpoint_step"] == 2

    with pytest.raises(UserError, match="no checkpoint of step 3 in .*: those there are of steps 2, 4"):
        ddpm_jax.load(tmp_path, step=3)
    with pytest.raises(UserError, match="A run in Python is one checkpoint.*step="):
        run.sample(4, checkpoint=4)
    next((tmp_path / "checkpoints" / "2" / "notes").iterdir()).write_text("{}")
    with pytest.raises(UserError, match="The checkpoint of step 2 in .* is damaged .*: take another, of step 4"):
        ddpm_jax.load(tmp_path, step=2)


@pytest.fixture
def point_run(point_config, point_source, tmp_path):
    run_directory.write(tmp_path / "points", point_config, (2,))
    resumable.train(point_config, tmp_path / "points", build(point_config, (2,)), point_source, jax.devices()[:1])
    return ddpm_jax.load(tmp_path / "points")


@pytest.mark.thorough
def test_likelihoods(point_run, workdir):
    """The kernel's, of points and of dequantised pixels, whose levels are 7 bits apart; one batch or several."""
    points, keys = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2), sample_keys(0, jnp.arange(5))
    how = {"solver": "rk4", "steps": 6, "probe": "exact"}
    found = point_run.log_likelihood(points, **how)
    solver = likelihood.SOLVERS["rk4"](steps=6)
    by_hand = likelihood.log_likelihood(point_run.denoise, point_run.process, points, keys, solver=solver, probe="exact")
    np.testing.assert_allclose(found.nats, by_hand.log_density, atol=1e-4)
    np.testing.assert_allclose(found.bits_per_dimension, -found.nats / 2 / np.log(2))
    np.testing.assert_array_equal(found.evaluations, by_hand.evaluations)
    assert found.conditions["ode"] == {
        "solver": "rk4", "steps": 6, "grid": "log_snr", "probe": "exact", "probes": 1, "t_min": pytest.approx(1e-3),
        "dequantised": False,
    }  # fmt: skip
    assert found.conditions["checkpoint_step"] == 8 and "data" not in found.conditions
    np.testing.assert_allclose(point_run.log_likelihood(points, batch_size=8, progress=True, **how).nats, found.nats, atol=1e-4)

    run, pixels = ddpm_jax.load(workdir), np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
    found = run.log_likelihood(pixels, solver="rk4", steps=6, seed=5)
    examples = keys_of(5, Purpose.EVALUATION, jnp.arange(3))
    keys = [jax.vmap(jax.random.fold_in, (0, None))(examples, i) for i in range(2)]
    x = likelihood.dequantise(pixels, keys[0])
    by_hand = likelihood.log_likelihood(run.denoise, run.process, x, keys[1], solver=solver)
    np.testing.assert_allclose(found.bits_per_dimension, -by_hand.log_density / 64 / np.log(2) + 7, rtol=1e-4)
    np.testing.assert_allclose(found.nats, by_hand.log_density - 64 * 7 * np.log(2), rtol=1e-4)

    for call, words in (
        (lambda: run.log_likelihood(pixels / 255), "The likelihood is that of pixels, uint8, found float64"),
        (lambda: run.log_likelihood(pixels[:, :7]), r"of the run's shape, \[N, 8, 8, 1\]"),
        (lambda: run.log_likelihood(pixels, labels=3), "is not conditional"),
        (lambda: run.log_likelihood(pixels, name="ddim"), "log_likelihood takes solver, .*, ema and ema_width, found name"),
        (lambda: run.log_likelihood(pixels, solver="dopri5", steps=5), "eval.steps does not apply to eval.solver=dopri5"),
        (lambda: run.log_likelihood(pixels, progress="yes"), "progress must be True or False, found 'yes'"),
        (lambda: point_run.log_likelihood(points * np.nan), "The images must be finite floats"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_weights_go_out_and_come_back(point_run, workdir, tmp_path):
    """In the layout of safetensors; what is damaged or of another network is refused."""
    path = point_run.export(tmp_path / "weights.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    about = header.pop("__metadata__")
    assert about["step"] == "8" and json.loads(about["config"])["network.name"] == "mlp" and length % 8 == 0
    leaves = {".".join(key[1:]): leaf for key, leaf in flatten_dict(jax.device_get(point_run.params)).items()}
    assert leaves.keys() == header.keys() and sum(leaf.nbytes for leaf in leaves.values()) == len(data)
    for name, leaf in leaves.items():
        first, last = header[name]["data_offsets"]
        assert header[name]["dtype"] == "F32"
        np.testing.assert_array_equal(np.frombuffer(data[first:last], "<f4").reshape(header[name]["shape"]), leaf)

    zeros = jax.tree.map(jnp.zeros_like, point_run.params)
    changed = dataclasses.replace(point_run, state=point_run.state._replace(ema=(zeros,)))
    chex.assert_trees_all_equal(changed.with_weights(path).params, jax.device_get(point_run.params))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(changed.params))

    huge = content[:8] + content[8:].replace(b'"data_offsets": [0,', b'"data_offsets": [9,', 1)
    for damaged in (b"", content[:40], content[:-4], b"\xff" * 8 + content[8:], huge, content.replace(b'"F32"', b"[1,2]", 1)):
        (tmp_path / "damaged.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged.safetensors (cannot be read as weights|holds other parameters)"):
            point_run.with_weights(tmp_path / "damaged.safetensors")
    with pytest.raises(UserError, match="nowhere.safetensors cannot be read as weights"):
        point_run.with_weights(tmp_path / "nowhere.safetensors")
    with pytest.raises(UserError, match="holds other parameters than the run: .* is in one of them only"):
        ddpm_jax.load(workdir).with_weights(path)
    with pytest.raises(UserError, match="Weights are exported as .safetensors, found 'weights.npz'"):
        point_run.export("weights.npz")


@pytest.mark.thorough
def test_progress_is_shown_where_it_is_wanted(point_run, monkeypatch):
    told = []

    class Recorded(progress.Progress):
        def __call__(self, done):
            told.append((done, self.total))

    monkeypatch.setattr(progress, "Progress", Recorded)
    first = point_run.sample(10, name="ddim", steps=8, batch_size=8)
    assert not told
    np.testing.assert_array_equal(point_run.sample(10, name="ddim", steps=8, batch_size=8, progress=True), first)
    assert told[0][0] == 1 and told[-1] == (16, 16)
    with pytest.raises(UserError, match="progress must be True or False"):
        point_run.sample(2, progress=2)


def test_mistakes(workdir, tmp_path):
    run = ddpm_jax.load(workdir)
    with pytest.raises(UserError, match="sampler.nmae"):
        run.sample(4, nmae="ddim")
    with pytest.raises(UserError, match="sampler.name takes one of.*ddim"):
        run.sample(4, name="ddmi")
    with pytest.raises(UserError, match="sampler.steps takes an int"):
        run.sample(4, steps="20")
    with pytest.raises(UserError, match="two frames"):
        run.trajectory(4, frames=1)
    with pytest.raises(UserError, match="There is no run in"):
        ddpm_jax.load(tmp_path / "nowhere")
