"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax.config import variants
from ddpm_jax.data import digits
from ddpm_jax.models import NETWORKS
from ddpm_jax.models.layers import add_labels
from ddpm_jax.runs import resumable, run_directory
from ddpm_jax.tasks import build

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_config_to_fork_is_valid():
    (block,) = [block for block in BLOCKS if "def get_config" in block]
    names = {}
    exec(block, names)
    config = names["get_config"]("ddim,smoke")
    assert config.data.name == "mnist" and config.sampler.name == "ddim" and config.network.dropout == 0.1


@pytest.mark.thorough
def test_the_kernel_examples_show_the_order_and_guidance(capsys):
    """Three errors, each about half of the one before; the mean and deviation that the page gives for guided samples."""
    names = {}
    for part in ("oracle.propagate", "classifier_free(pair"):
        (block,) = [block for block in BLOCKS if part in block]
        exec(block, names)
    *errors, guided = capsys.readouterr().out.splitlines()
    errors = [float(line.split()[1]) for line in errors]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, atol=0.2)
    np.testing.assert_allclose([float(number) for number in guided.split()], [0.79, 0.20], atol=0.01)
    assert names["evaluations"] == 2 * 200


class Toy(nn.Module):
    """A network that compiles at once."""

    num_classes: int

    @nn.compact
    def __call__(self, x, time, keys=None, condition=None):  # noqa: ARG002
        of_labels = add_labels(jnp.ones((len(x), 1)), condition, self.num_classes)[:, :, None, None]
        return self.param("scale", nn.initializers.ones, ()) * of_labels * x


@pytest.mark.thorough
def test_labels_and_guidance(tmp_path, monkeypatch):
    """The picture has a row for each scale; the denoiser is that of the label."""
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    config = variants.apply(configs.base(), "cond,smoke")
    config.network.name = "toy"
    workdir = tmp_path / "runs" / "digits-cond"
    run_directory.write(workdir, config, (8, 8, 1), 10)
    resumable.train(config, workdir, build(config, (8, 8, 1), 10), digits.load(split="train"), jax.devices()[:1])
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in BLOCKS if "digits-cond" in block]
    names = {}
    exec(block, names)
    assert not list(tmp_path.glob("*.*"))
    with Image.open("runs/scales.png") as image:
        assert image.size[0] == 2 * image.size[1] - 3 and len(names["rows"]) == 4
    run, x = names["run"], names["rows"][0]
    assert len(run.compiled) == 2
    np.testing.assert_array_equal(names["prediction"].eps, run.denoiser([3] * 8)(x, 0.5).eps)
    assert np.abs(names["prediction"].eps - run.denoise(x, 0.5).eps).max() > 1e-3


@pytest.mark.thorough
def test_the_first_hour(tmp_path, monkeypatch):
    """The pictures are there, and the sampler by hand runs."""
    monkeypatch.setitem(NETWORKS, "toy", Toy)
    config = variants.apply(configs.base(), "smoke")
    config.network.name = "toy"
    workdir = tmp_path / "runs" / "digits"
    run_directory.write(workdir, config, (8, 8, 1))
    resumable.train(config, workdir, build(config, (8, 8, 1)), digits.load(split="train"), jax.devices()[:1])
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        if ("ddpm_jax.load" in block or "run.denoise" in block) and "digits-cond" not in block:
            exec(block, names)
    assert isinstance(names["run"], ddpm_jax.runs.run.Run) and len(names["run"].compiled) == 4
    assert not list(tmp_path.glob("*.*"))  # of what git would show
    assert {path.name for path in Path("runs").glob("*.*")} == {"steps.png", "eta.png", "film.gif"}
    for name in ("steps", "eta"):
        with Image.open(f"runs/{name}.png") as image:  # a row of 8 for each setting: one noise in a column
            assert (image.size[0] - 3) * 3 == (image.size[1] - 3) * 8
    assert names["x"].shape == (8, 8, 8, 1) and names["evaluations"] == 50
