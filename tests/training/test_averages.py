"""Power-function averages: the formulas, and averages that were not kept made of those that were."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

import ddpm_jax
from ddpm_jax import command
from ddpm_jax.errors import UserError
from ddpm_jax.runs import jobs, resumable, run_directory, sampling
from ddpm_jax.tasks import build
from ddpm_jax.training import averages, loop


def profile(tau, t, gamma):
    return np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)


@pytest.mark.parametrize("width, gamma", [(0.05, 16.97), (0.1, 6.94), (0.2, 1.826), (12**-0.5, 0.0)])
def test_the_exponent_of_a_width(width, gamma):
    """As EDM2 states it for 0.05 and 0.1; and the deviation of the profile, by quadrature, is the width."""
    found = averages.gamma_of(width)
    assert found == pytest.approx(gamma, abs=6e-3)
    moments = [integrate.quad(lambda tau, n=n: tau**n * profile(tau, 1.0, found), 0, 1)[0] for n in range(3)]
    assert moments[0] == pytest.approx(1) and np.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize("t, gamma, other_t, other_gamma", [(3.0, 2.0, 5.0, 7.0), (5.0, 2.0, 3.0, 7.0), (4.0, 1.5, 4.0, 6.0)])
def test_inner_products_against_quadrature(t, gamma, other_t, other_gamma):
    both = lambda tau: profile(tau, t, gamma) * profile(tau, other_t, other_gamma)  # noqa: E731
    expected, _ = integrate.quad(both, 0, min(t, other_t))
    assert averages.inner_product(t, gamma, other_t, other_gamma) == pytest.approx(expected, rel=1e-8)


def walk(steps, size=3):
    """A random walk of parameters that settles, theta_1 .. theta_steps."""
    return np.cumsum(np.random.default_rng(0).normal(size=(steps, size)) / np.arange(1, steps + 1)[:, None] ** 0.7, axis=0)


def by_sum(thetas, t, width):
    """The average at t by its definition: theta_k weighs the integral of the profile from k - 1 to k."""
    gamma, k = averages.gamma_of(width), np.arange(1, t + 1)
    weights = (k ** (gamma + 1) - (k - 1.0) ** (gamma + 1)) / t ** (gamma + 1)
    assert weights.sum() == pytest.approx(1)
    return weights @ thetas[:t]


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_the_update_is_the_definition(width):
    """Whatever it begins with: after the first step it is the parameters of that step."""
    thetas = walk(60)
    average, update = {"w": jnp.full(3, 9.0)}, jax.jit(averages.power_average, static_argnums=2)
    for k, theta in enumerate(thetas):
        average = update(average, {"w": jnp.asarray(theta, jnp.float32)}, width, jnp.asarray(k))
        if k in (0, 1, 17, 59):
            np.testing.assert_allclose(average["w"], by_sum(thetas, k + 1, width), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [10, 1000, 777_777, 3_000_001])
def test_the_update_is_exact_in_long_runs(t):
    """What an average takes of the parameters of step t, where it is near 0, to single precision."""
    for width in (0.01, 0.05, 0.25):
        exponent = averages.gamma_of(width) + 1
        share = averages.power_average({"w": jnp.zeros(())}, {"w": jnp.ones(())}, width, jnp.asarray(t - 1))["w"]
        np.testing.assert_allclose(share, -np.expm1(exponent * np.log1p(-1 / t)), rtol=1e-6)


def reconstructed(thetas, every, step, width, widths=(0.05, 0.1)):
    steps = [t for t in range(every, step + 1, every) for _ in widths]
    kept = np.stack([by_sum(thetas, t, w) for t, w in zip(steps, np.tile(widths, len(steps) // len(widths)), strict=True)])
    return averages.shares(np.array(steps), np.tile(widths, len(steps) // len(widths)), step, width) @ kept


def test_averages_are_made_of_others():
    """Exactly where one is kept or the parameters stay; else nearer with more snapshots. With 8 of two widths 0.075 is off by
    less than 1 % of what lies between the two, with 32 wider ones too, also beyond both."""
    thetas = walk(4096)
    for width in (0.05, 0.1):
        shares = averages.shares(np.repeat([512, 1024], 2), np.tile([0.05, 0.1], 2), 1024, width)
        np.testing.assert_allclose(shares, [0, 0, width == 0.05, width == 0.1], atol=1e-10)
    earlier = averages.shares(np.repeat([512, 1024], 2), np.tile([0.05, 0.1], 2), 512, 0.1)
    np.testing.assert_allclose(earlier, [0, 1, 0, 0], atol=1e-10)
    many = averages.shares(np.repeat(np.arange(64, 1025, 64), 2), np.tile([0.05, 0.1], 16), 1024, 0.13)
    assert many.sum() == pytest.approx(1)
    np.testing.assert_allclose(reconstructed(np.ones((1024, 3)), 128, 1024, 0.075), 1, rtol=1e-12)

    between = np.abs(by_sum(thetas, 4096, 0.05) - by_sum(thetas, 4096, 0.1)).max()
    for width, limit in ((0.075, 0.01), (0.15, 0.05), (0.2, 0.3)):
        errors = [
            np.abs(reconstructed(thetas, every, 4096, width) - by_sum(thetas, 4096, width)).max() / between
            for every in (4096, 1024, 512, 128)
        ]
        assert errors[0] > errors[2] > errors[3] and errors[2] < limit and errors[3] < 0.01, (width, errors)


@pytest.fixture
def config(point_config, monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    point_config.ema.update(widths=(0.05, 0.1), snapshot_every=4)
    point_config.train.update(steps=24, checkpoint_every=6, sample_every=0, keep_last=9)
    point_config.optim.learning_rate = 0.01
    point_config.sampler.update(name="ddim", frames=0)
    return point_config


def train(config, source, workdir, steps=24):
    config.train.steps = steps
    run_directory.write(workdir, config, (2,), 3)
    return jax.device_get(resumable.train(config, workdir, build(config, (2,), 3), source, jax.devices()[:1]))


def snapshots_of(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "averages").iterdir()}


def differing(one, other):
    return max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_a_width_that_was_not_kept(config, point_source, tmp_path, capsys):
    """Against a run that kept it: much nearer than the kept ones are; those that were kept are what they were, bit for bit."""
    train(config, point_source, tmp_path / "run")
    run = ddpm_jax.load(tmp_path / "run")
    config.ema.widths = (0.075, 0.2)
    direct = train(config, point_source, tmp_path / "direct")
    for number, width, share in ((1, 0.075, 0.05), (2, 0.2, 0.1)):
        found = run.average(width)
        assert found.config.sampler.ema_width == width
        kept = min(differing(direct.ema[number], run.state.ema[k]) for k in (1, 2))
        assert differing(found.params, direct.ema[number]) < share * kept
    for number, width in ((1, 0.05), (2, 0.1)):
        assert differing(run.average(width).params, run.state.ema[number]) < 1e-6
        run.config.sampler.ema = number
        assert differing(run.params, run.state.ema[number]) == 0
        assert differing(run.average(0.075).average(0.2).params, run.average(0.2).params) == 0
    run.config.sampler.ema = 0

    sampled = run.sample(3, ema_width=0.075)
    averaged = run.average(0.075)
    np.testing.assert_array_equal(sampled, averaged.sample(3))
    np.testing.assert_array_equal(sampled, averaged.average(0.2).sample(3, ema_width=0.075))
    np.testing.assert_array_equal(averaged.sample(3, ema_width=0.0), run.sample(3))
    weights = averaged.export(tmp_path / "averaged.safetensors")
    assert differing(averaged.average(0.2).with_weights(weights).params, averaged.params) == 0
    assert np.abs(sampled - run.sample(3)).max() > 1e-5
    points = np.ones((2, 2), "f")
    settings = {"solver": "rk4", "steps": 3, "probe": "exact"}
    of_width = run.log_likelihood(points, ema_width=0.075, **settings)
    assert of_width.conditions["ema_width"] == 0.075 and "ema_decay" not in of_width.conditions
    np.testing.assert_array_equal(of_width.nats, run.average(0.075).log_likelihood(points, **settings).nats)

    damaged = tmp_path / "run" / "averages" / "step_00000012.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"1234")
    capsys.readouterr()
    assert differing(run.average(0.075).params, direct.ema[1]) > 0
    assert "step_00000012.safetensors is damaged, and the average is made without it: its checksum" in capsys.readouterr().out


def test_a_run_continues_with_its_averages(config, point_source, tmp_path):
    """Bit for bit, the files too: one that was written after the last checkpoint is written again."""
    whole, folder = train(config, point_source, tmp_path / "whole"), tmp_path / "parts"
    train(config, point_source, folder, 9)
    shutil.rmtree(folder / "checkpoints" / "9")  # as a kill after step 8 leaves it, the newest checkpoint that of step 6
    for name in ("step_00000008", "step_00000010"):
        (folder / "averages" / f"{name}.safetensors").write_bytes(b"of another course")
    parts = train(config, point_source, folder)
    for a, b in zip(*map(jax.tree.leaves, (whole, parts)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert snapshots_of(folder) == snapshots_of(tmp_path / "whole")
    assert sorted(snapshots_of(folder)) == [f"step_{step:08}.safetensors" for step in range(4, 25, 4)]
    notes = json.loads((tmp_path / "whole" / "checkpoints" / "24" / "notes" / "metadata").read_text())["notes"]
    assert {name.split(".")[1] for name in json.loads(notes)["sha256"] if name.startswith("ema.")} == {"0", "1", "2"}


def test_the_command_samples_with_another_width(config, point_source, tmp_path):
    """Its files say which; a run directory does not keep it, and training does not take it."""
    train(config, point_source, tmp_path / "run")
    said, _ = command.resolve("", str(tmp_path / "run"), "sample", [("sampler.ema_width", "0.075")])
    jobs.sample(said, tmp_path / "run")
    (facts,) = (tmp_path / "run" / "samples").glob("*ema_width0.075*.json")
    found = json.loads(facts.read_text())
    assert found["ema_width"] == 0.075 and "ema_decay" not in found and found["sampler"]["ema_width"] == 0.075
    with np.load(facts.with_suffix(".npz")) as stored:
        count = said.sampler.num_samples
        expected = ddpm_jax.load(tmp_path / "run").sample(count, ema_width=0.075)
        np.testing.assert_allclose(stored["arr_0"], expected, atol=1e-5)
    config.sampler.ema = 2
    assert "_ema_width0.1_" in sampling.sample_name(config, 24)
    config.sampler.ema = 0
    assert "_ema0.9999_" in sampling.sample_name(config, 24)
    with pytest.raises(UserError, match="sampler.ema_width=0.075 is for --mode=sample and eval"):
        command.resolve("", str(tmp_path / "run"), "train", [("sampler.ema_width", "0.075")])
    run_directory.write(tmp_path / "other", said, (2,), 3)
    assert run_directory.read(tmp_path / "other")[0].sampler.ema_width == 0.0


def test_what_a_run_must_have_kept(point_config, point_source, tmp_path):
    point_config.train.update(steps=2, checkpoint_every=2, sample_every=0)
    train(point_config, point_source, tmp_path / "run", 2)
    assert not (tmp_path / "run" / "averages").exists()
    run = ddpm_jax.load(tmp_path / "run")
    for call in (lambda: run.average(0.075), lambda: run.sample(2, ema_width=0.075)):
        with pytest.raises(UserError, match="ema_width=0.075 is made of averages of config.ema.widths, and this run has none"):
            call()
    point_config.ema.widths = (0.1, 0.1)
    with pytest.raises(UserError, match="ema.widths is .0.1, 0.1.: give each width once"):
        ddpm_jax.config.check(point_config)
    point_config.ema.widths = (0.05, 0.1)
    train(point_config, point_source, tmp_path / "without", 2)
    run = ddpm_jax.load(tmp_path / "without")
    assert differing(run.average(0.1).params, run.state.ema[2]) < 1e-6
    with pytest.raises(UserError, match="no averages of before step 2, .*width 0.075 does not follow: take one of 0.05, 0.1"):
        run.average(0.075)
    with pytest.raises(UserError, match="takes a tuple of floats.*found"):
        run.average(0.0)
    point_config.ema.update(widths=(0.1,), snapshot_every=3)
    point_config.train.update(steps=6, log_every=6, checkpoint_every=6)
    assert loop.steps_per_call(point_config, 0, "gpu") == 3
    point_config.sampler.ema = 2
    with pytest.raises(UserError, match="sampler.ema is 2, but the run has 2 averages: take 0 for 0.9999, 1 for the width 0.1"):
        ddpm_jax.config.check(point_config)
