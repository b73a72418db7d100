"""Runs of earlier formats stay readable: tests/fixtures/README.md says how they were made."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import ddpm_jax
from ddpm_jax import command, lines
from ddpm_jax.evaluation import bits_per_dimension
from ddpm_jax.evaluation import jobs as evaluation
from ddpm_jax.runs import jobs, logs, run_directory

FIXTURES = Path(__file__).parent.parent / "fixtures"


DECAYS = {"run_format_1": (0.995,), "run_format_3": (0.9, 0.5), "run_format_5": (0.9, 0.5)}


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.thorough) if n == "run_format_3" else n for n in DECAYS])
def name(request, monkeypatch):
    """Of a run that ended at step 12 with the checkpoints 8 and 12; one device, as it had."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    return request.param


@pytest.fixture
def workdir(name, tmp_path):
    return Path(shutil.copytree(FIXTURES / name, tmp_path / "run"))


def written(workdir):
    (file,) = (workdir / "samples").glob("step_00000012_*.npz")
    with np.load(file) as stored:
        return stored["arr_0" if "arr_0" in stored else "samples"]  # of today, and of before


def test_it_samples_what_it_sampled(name, workdir, caplog):
    """Loaded without a word."""
    run = ddpm_jax.load(workdir)
    assert not caplog.records
    assert run.state.step == 12 and run.config.ema.decays == DECAYS[name]
    np.testing.assert_allclose(run.sample(4), written(FIXTURES / name), atol=1e-4)


@pytest.mark.parametrize("name", ["run_format_5"], indirect=True)
def test_it_is_evaluated_as_it_was(workdir):
    """Its results are known again by their conditions, and come out the same."""
    (path,) = (workdir / "evaluations").glob("*.jsonl")
    old = lines.read(path, bits_per_dimension.is_result)
    path.unlink()
    config, _ = command.resolve("", str(workdir), "eval", [("eval.bpd", "true")])
    evaluation.JOBS["eval"](config, workdir)
    for before, after in zip(old, lines.read(path, bits_per_dimension.is_result), strict=True):
        assert before.keys() == after.keys() and before["example"] == after["example"]
        np.testing.assert_allclose([after["ode"], after["bound"]], [before["ode"], before["bound"]], rtol=1e-3)


def test_it_continues_as_it_continued(name, workdir):
    """Back at step 8, four steps more: the metrics and the samples that it had, and a run directory of today's format."""
    old = logs.read(workdir / "metrics.jsonl")
    for path in [workdir / "checkpoints" / "12", *(workdir / "samples").iterdir()]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    config, _ = command.resolve("", str(workdir), "train", [])
    jobs.train(config, workdir)
    new = logs.read(workdir / "metrics.jsonl")
    assert [line["step"] for line in new] == [2, 4, 6, 8, 10, 12]
    for metric in ("loss", "grad_norm", "param_norm", "learning_rate"):
        np.testing.assert_allclose([line[metric] for line in new], [line[metric] for line in old], rtol=1e-5)
    np.testing.assert_allclose(written(workdir), written(FIXTURES / name), atol=1e-4)
    assert json.loads((workdir / "config.json").read_text())["format"] == run_directory.FORMAT
    assert ddpm_jax.load(workdir).state.step == 12
