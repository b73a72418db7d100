"""--mode=eval on runs of a network that compiles at once."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ddpm_jax import config as configs
from ddpm_jax import lines, main
from ddpm_jax.config import variants
from ddpm_jax.construct import construct
from ddpm_jax.data import SOURCES, Source, toy2d
from ddpm_jax.diffusion import likelihood
from ddpm_jax.diffusion.bound import BOUND_VARIANCES
from ddpm_jax.diffusion.keys import ADDRESSES, Purpose, keys_of
from ddpm_jax.diffusion.likelihood import (
    Bound,
    Likelihood,
    chain_times,
    dequantise,
    dequantised_bits,
    dopri5,
    log_likelihood,
    rk4,
    variational_bound,
)
from ddpm_jax.diffusion.process import reaches_data
from ddpm_jax.diffusion.transforms import clipped
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import records
from ddpm_jax.evaluation.bits_per_dimension import conditions_of_the_ode, make_compute, summarise, variance_of
from ddpm_jax.images import to_model
from ddpm_jax.models import NETWORKS
from ddpm_jax.runs import resumable, run, run_directory
from ddpm_jax.tasks import build
from ddpm_jax.training.step import State

SHAPES = {"made_up": (4, 4, 1), "toy2d": (2,)}
SPLITS = {"train": 0, "test": 1}


class Toy(nn.Module):
    """A network of three parameters."""

    @nn.compact
    def __call__(self, x, time, keys=None):  # noqa: ARG002
        w = self.param("w", nn.initializers.normal(), (3,))
        return w[0] + jnp.tanh(x + w[1]) + w[2] * jnp.cos(time).reshape(-1, *[1] * (x.ndim - 1))


class Bad(Toy):
    """One whose output is no number."""

    def __call__(self, x, time, keys=None):
        return jnp.log(-1 - jnp.square(super().__call__(x, time, keys)))


def made_up(*, split):
    random = np.random.default_rng(SPLITS[split])
    return Source({"image": random.integers(0, 256, (20, 4, 4, 1), dtype=np.uint8), "label": np.zeros(20, np.int32)}, 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(data) -> the directory of a run, a copy of its own, of a process that sees one device."""
    devices, tmp_path = jax.devices()[:1], tmp_path_factory.mktemp("runs")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    monkeypatch.setitem(SOURCES, "made_up", made_up)

    def train(name):
        config = variants.apply(configs.base(), "smoke")
        config.data.update(name=name, num_examples=20)
        config.network.name = "toy"
        config.process.steps = 12
        config.train.update(steps=2, sample_every=0)
        config.eval.update(bpd=True, num_examples=0, batch_size=64, steps=4, bound_terms=0)
        run_directory.write(tmp_path / name, config, SHAPES[name])
        source = construct(SOURCES, config.data)
        resumable.train(config, tmp_path / name, build(config, SHAPES[name]), source, devices)

    def copy(name="made_up"):
        if not (tmp_path / name).exists():
            train(name)
        return shutil.copytree(tmp_path / name, tmp_path_factory.mktemp("copies") / name)

    yield copy
    monkeypatch.undo()


def evaluate(workdir, *words):
    """By the command line; what the file of the summary holds, and that of the examples."""
    before = set(workdir.glob("evaluations/*.json"))
    main.FLAGS.unparse_flags()
    for name in ("config", "workdir", "mode", "debug"):
        main.FLAGS[name].unparse()
    main.main(["main", "--mode=eval", f"--workdir={workdir}", *(f"--config.{word}" for word in words)])
    path = max(workdir.glob("evaluations/*.json"), key=lambda path: (path not in before, path.stat().st_mtime_ns))
    return json.loads(path.read_text()), [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


def close(found, expected):
    for name in ("ode", "bound", "bound_prior", "bound_terms", "bound_decoder"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("addresses", ADDRESSES)
def test_every_random_number_has_an_address_of_its_own(addresses, monkeypatch):
    """By (eval.seed, purpose, example, what it is for), and for older runs without the purpose. The conditions tell."""
    config = variants.apply(configs.base(), "smoke")
    config.network.name, config.addresses, config.eval.seed = "toy", addresses, 9
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    task, found, rows = build(config, (4, 4, 1)), [], made_up(split="test").arrays["image"][:3]
    monkeypatch.setattr(likelihood, "dequantise", lambda levels, keys: found.append(keys) or levels / 128)
    ode, bound = Likelihood(jnp.zeros(3), jnp.zeros(3), 3, None), Bound(jnp.zeros(3), jnp.zeros((2, 3)), None, jnp.zeros(3), 1)
    monkeypatch.setattr(likelihood, "log_likelihood", lambda *of, **_: found.append(of[3]) or ode)
    monkeypatch.setattr(likelihood, "variational_bound", lambda *of, **_: found.append(of[3]) or bound)
    make_compute(task, config, (4, 4, 1))(None, (), rows, None, jnp.arange(3))
    root = jax.random.key(9)
    root = jax.random.fold_in(root, Purpose.EVALUATION) if addresses == "by_purpose" else root
    of_bound, dequantised, probes = found
    for number, keys in enumerate((dequantised, probes, of_bound)):
        by_hand = [jax.random.fold_in(jax.random.fold_in(root, place), number) for place in range(3)]
        assert jnp.all(keys == jnp.stack(by_hand))
    state = State(np.asarray(2), None, None, ())
    told = conditions_of_the_ode(run.Run(None, config, (4, 4, 1), 0, task, state))
    assert told.get("addresses") == {"by_purpose": "by_purpose", "shared": None}[addresses]


@pytest.mark.thorough
def test_images(trained, capsys):
    """Both numbers are those of the kernel by hand, on the test split; printed and written with their conditions."""
    workdir = trained()
    summary, (head, *lines) = evaluate(workdir, "eval.seed=3")
    out = capsys.readouterr().out
    assert head["conditions"] == summary["conditions"] and [line["example"] for line in lines] == list(range(20))
    assert summary["examples"] == 20 and summary["conditions"]["data"] == {"name": "made_up", "split": "test"}

    loaded = run.load(workdir)
    process, levels = loaded.process, made_up(split="test").arrays["image"]
    keys = keys_of(3, Purpose.EVALUATION, jnp.arange(20))
    first, second, third = (jax.vmap(jax.random.fold_in, (0, None))(keys, purpose) for purpose in range(3))
    x = dequantise(levels, first)
    by_hand = jax.jit(partial(log_likelihood, loaded.denoise, process, solver=rk4(steps=4)))(x, second)
    np.testing.assert_allclose([line["ode"] for line in lines], -by_hand.log_density, rtol=1e-4)
    bits = dequantised_bits(by_hand.log_density, (4, 4, 1))
    np.testing.assert_allclose(summary["ode"]["bits_per_dimension"], bits.mean(), rtol=1e-4)
    np.testing.assert_allclose(summary["ode"]["standard_error"], bits.std(ddof=1) / 20**0.5, rtol=1e-3)
    assert summary["ode"]["evaluations"] == 12

    times = chain_times(process, steps=0)
    denoise, x0 = clipped(loaded.denoise, process), to_model(levels)
    bound = partial(variational_bound, denoise, process, variance=BOUND_VARIANCES["fixed_large"], to_data=True)
    found = jax.jit(bound)(x0, third, times)
    nats = found.prior + found.terms.sum(0) + found.decoder
    bound = summary["bound"]
    np.testing.assert_allclose([line["bound"] for line in lines], nats, rtol=1e-4)
    np.testing.assert_allclose(bound["bits_per_dimension"], nats.mean() / 16 / np.log(2), rtol=1e-4)
    whole = bound["prior"] + sum(bound["terms_by_tenth"]) + bound["decoder"]
    np.testing.assert_allclose(whole, bound["bits_per_dimension"], rtol=1e-6)
    assert bound["evaluations"] == 12 and len(bound["terms_by_tenth"]) == 10
    for words in (
        f"{summary['ode']['bits_per_dimension']:.4f} +- ",
        "dequantised with seed 3, rk4,", "steps 4, grid log_snr, 1 rademacher probe,",
        f"{bound['bits_per_dimension']:.4f} +- ", "all of 12 steps, large variance", "checkpoint of step 2, EMA 0.9999",
        "20 examples of made_up, split test", "12 evaluations",
    ):  # fmt: skip
        assert words in out


@pytest.mark.thorough
@pytest.mark.parametrize("variant, transitions", [("vp", 8), ("ncsn", 11)])
def test_chains_that_end_in_noise(variant, transitions, trained):  # noqa: ARG001 - it has the network
    """In continuous time, and on a ladder: the last noise is the decoder's, and asks no network."""
    config = variants.apply(configs.base(), variant)
    config.network.name = "toy"
    config.process.steps = 12
    config.sampler.steps = 12
    config.eval.update(solver="rk4", steps=3, bound_steps=9, bound_terms=0)
    task = build(config, (4, 4, 1))
    params, levels = task.init(jax.random.key(0)), made_up(split="test").arrays["image"][:3]
    found = jax.jit(make_compute(task, config, (4, 4, 1)))(params, (), levels, None, jnp.arange(3))
    keys = keys_of(0, Purpose.EVALUATION, jnp.arange(3))
    noise = jax.vmap(jax.random.fold_in, (0, None))(keys, 2)
    process, denoise = task.process, clipped(task.denoiser(params, ()), task.process)
    times = chain_times(process, steps=9)
    bound = partial(variational_bound, denoise, process, variance=BOUND_VARIANCES["fixed_large"], to_data=False)
    by_hand = jax.jit(bound)(to_model(levels), noise, times)
    np.testing.assert_allclose(found["bound"], by_hand.prior + by_hand.terms.sum(0) + by_hand.decoder, rtol=1e-4)
    assert by_hand.evaluations == found["bound_evaluations"][0] == transitions == len(times) - (not reaches_data(process))


@pytest.mark.thorough
def test_points(trained, capsys):
    """Of points the density itself, without levels; fresh ones from the test split; adaptively, and with the trace itself."""
    workdir = trained("toy2d")
    given = ("eval.solver=dopri5", "eval.rtol=1e-4", "eval.atol=1e-4", "eval.probe=exact", "eval.num_examples=5")
    summary, (_, *lines) = evaluate(workdir, *given)
    assert "dopri5, rtol 0.0001, atol 0.0001, exact trace" in capsys.readouterr().out
    loaded, x = run.load(workdir), jnp.array(toy2d.load(split="test", num_examples=20).arrays["image"][:5])
    by_hand = jax.jit(partial(log_likelihood, loaded.denoise, loaded.process, solver=dopri5(rtol=1e-5), probe="exact"))
    by_hand = by_hand(x, jax.random.split(jax.random.key(0), 5)).log_density
    np.testing.assert_allclose([line["ode"] for line in lines], -by_hand, atol=0.01)
    np.testing.assert_allclose(summary["ode"]["bits_per_dimension"], -by_hand.mean() / 2 / np.log(2), atol=0.01)
    assert 12 < summary["ode"]["evaluations"] == np.mean([line["ode_evaluations"] for line in lines])


@pytest.mark.thorough
def test_the_batch_does_not_matter(trained, monkeypatch):
    """All at once on one device, or in fours on two with a rest of two: the same results, example by example."""
    workdir, sizes = trained(), []
    words = ("eval.bound_terms=3", "eval.num_examples=18")
    whole = evaluate(workdir, *words)[1]
    next(workdir.glob("evaluations/*.jsonl")).unlink()
    monkeypatch.setattr(records, "append", lambda path, lines, f=records.append: (sizes.append(len(lines)), f(path, lines)))
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:2])
    parts = evaluate(workdir, *words, "eval.batch_size=3")[1]
    assert sizes == [4, 4, 4, 4, 2] and parts[0] == whole[0] and len(parts) == 19
    for found, line in zip(parts[1:], whole[1:], strict=True):
        close(found, line)


@pytest.mark.thorough
def test_it_goes_on_where_it_was_killed(trained, capsys):
    """Two batches and half a line are there: the rest is computed, no more, and the summary is the same; then all is there."""
    workdir = trained()
    words = ("eval.num_examples=12", "eval.batch_size=4")
    summary, _ = evaluate(workdir, *words)
    path = next(workdir.glob("evaluations/*.jsonl"))
    rows = lines.read(path, lambda _: True)
    lines.write(path, [row | ({"ode_evaluations": 13} if "example" in row else {}) for row in rows[:9]])
    with path.open("a") as file:
        file.write('{"example": 8, "ode": 1.2')
    again, found = evaluate(workdir, *words)
    assert "12 examples of the split test, 8 of them done" in capsys.readouterr().out
    assert [line["ode_evaluations"] for line in found[1:]] == [13] * 8 + [12] * 4
    again["ode"]["evaluations"] = summary["ode"]["evaluations"]
    for part in ("ode", "bound"):
        for name, value in summary[part].items():
            np.testing.assert_allclose(again[part][name], value, rtol=1e-4)
    fewer, _ = evaluate(workdir, "eval.num_examples=5")
    assert "of them done" not in capsys.readouterr().out and fewer["examples"] == 5
    assert fewer["ode"]["evaluations"] == 13


@pytest.mark.thorough
def test_damaged_results_are_told_and_computed_again(trained, capsys):
    """A digit, a key, a number without end; with a checksum, and without one as in files of before. Lost lines too."""
    workdir = trained()
    words = ("eval.num_examples=8", "eval.batch_size=8")
    summary, whole = evaluate(workdir, *words)
    path = next(workdir.glob("evaluations/*.jsonl"))
    digit = json.dumps(whole[1]).replace('"ode": ', '"ode": 1')
    old = [{key: value for key, value in row.items() if key != lines.SUM} for row in whole]
    key = json.dumps(old[2]).replace('"bound_prior"', '"bound_prjor"')
    endless = json.dumps(old[3] | {"ode": 1}).replace('"ode": 1', '"ode": 9e999')
    short = json.dumps(old[4] | {"bound_terms": [1.0]})
    kept = [json.dumps(old[0]), *map(json.dumps, old[5:8])]
    path.write_text("\n".join([*kept, digit, key, endless, short]) + "\n")
    capsys.readouterr()
    again, found = evaluate(workdir, *words)
    out = capsys.readouterr().out
    assert "4 of 8 lines are damaged and left out (line 5, 6, 7, 8)" in out and "3 of them done" in out
    assert sorted(row["example"] for row in found[1:]) == list(range(8))
    np.testing.assert_allclose(again["ode"]["bits_per_dimension"], summary["ode"]["bits_per_dimension"], rtol=1e-4)
    evaluate(workdir, *words)
    assert "damaged" not in capsys.readouterr().out


def test_other_conditions_are_another_file(tmp_path):
    one = records.path_of(tmp_path, "name", {"seed": 0, "split": "test"})
    assert one == records.path_of(tmp_path, "name", {"split": "test", "seed": 0})
    assert one != records.path_of(tmp_path, "name", {"split": "test", "seed": 1})


@pytest.mark.thorough
def test_the_variance_that_was_learned():
    """It is taken where the run has one, and no other than that."""
    config = variants.apply(configs.base(), "improved,smoke")
    config.network.name = "mlp"
    task = build(config, (2,))
    assert variance_of(config) == "learned_range" and variance_of(variants.apply(configs.base(), "smoke")) == "fixed_large"

    def computed():
        params = jax.eval_shape(task.init, jax.random.key(0))
        return str(jax.make_jaxpr(make_compute(task, config, (2,)))(params, (), jnp.zeros((3, 2)), None, jnp.arange(3)))

    learned = computed()
    config.eval.variance = "fixed_small"
    assert computed() != learned
    config.eval.variance = "learned"
    with pytest.raises(UserError, match="variance=learned was not learned by this run: take auto, fixed_small or fixed_large"):
        computed()


@pytest.mark.thorough
def test_mistakes(trained, monkeypatch):
    workdir = trained()
    for words, message in (
        (["eval.bpd=false"], "--mode=eval of what. .*--config.eval.bpd=true"),
        (["eval.bound_terms=99"], "config.eval do not suit the run: terms must be 0, for all, or up to the 11 transitions"),
        (["eval.rtol=0.1"], "config.eval.rtol does not apply to eval.solver=rk4"),
        (
            ["sampler.steps=3"],
            "--mode=eval takes the run's config: only config.eval, config.sampler.ema, .* found config.sampler.st",
        ),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(workdir, *words)
    monkeypatch.setitem(NETWORKS, "toy", Bad)
    with pytest.raises(UserError, match="likelihood of example 0 is not finite"):
        evaluate(workdir)
    larger = Source({"image": np.zeros((20, 8, 8, 1), np.uint8), "label": np.zeros(20, np.int32)}, 10)
    monkeypatch.setitem(SOURCES, "made_up", lambda *, split: larger)  # noqa: ARG005
    with pytest.raises(UserError, match=r"images of \[4, 4, 1\] and the data are now \[8, 8, 1\]"):
        evaluate(workdir)


def test_means_and_standard_errors_by_hand():
    """Of three examples in two dimensions: nats over D log 2, the spread by n - 1; of one example there is no error."""
    nats = [3.0, 5.0, 10.0]
    results = [
        {
            "ode": x, "ode_evaluations": 10, "bound": 2 * x, "bound_prior": 0.5, "bound_terms": [x, 0.0], "bound_decoder": 1.0,
            "bound_evaluations": 7,
        }
        for x in nats
    ]  # fmt: skip
    unit = 2 * np.log(2)
    summary = summarise(results, (2,))
    spread = np.sqrt(sum((x - 6) ** 2 for x in nats) / 2)
    assert summary["ode"]["bits_per_dimension"] == pytest.approx(6 / unit)
    assert summary["ode"]["standard_error"] == pytest.approx(spread / np.sqrt(3) / unit)
    assert summary["bound"]["standard_error"] == pytest.approx(2 * spread / np.sqrt(3) / unit)
    assert summary["bound"]["terms_by_tenth"] == pytest.approx([6 / unit, 0])
    assert summarise(results[:1], (2,))["ode"]["standard_error"] is None
    assert summarise(results, (2, 1, 1))["ode"]["bits_per_dimension"] == pytest.approx(6 / unit + 7)
