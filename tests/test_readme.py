"""The README's Python runs as it stands."""

import re
from pathlib import Path

import jax
import numpy as np

import ddpm_jax
from ddpm_jax import config as configs
from ddpm_jax import variants
from ddpm_jax.data import digits
from ddpm_jax.training import loop, run_directory
from ddpm_jax.training.tasks import build

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_config_to_fork_is_valid():
    (block,) = [block for block in BLOCKS if "def get_config" in block]
    names = {}
    exec(block, names)
    config = names["get_config"]("ddim,smoke")
    assert config.data.name == "mnist" and config.sampler.name == "ddim" and config.network.dropout == 0.1


def test_the_kernel_example_samples_the_gaussian(capsys):
    """Mean 0.6, deviation 0.3: 10,000 samples, 100 steps of DDIM."""
    (block,) = [block for block in BLOCKS if "gaussian_denoiser" in block]
    names = {}
    exec(block, names)
    np.testing.assert_allclose([names["x"].mean(), names["x"].std()], [0.6, 0.3], atol=0.02)
    assert capsys.readouterr().out.split()[-1] == "100"


def test_the_first_hour(tmp_path, monkeypatch):
    """On a run of the smoke size: the pictures are there, and the sampler by hand runs."""
    config = variants.apply(configs.base(), "smoke")
    workdir = tmp_path / "runs" / "digits"
    run_directory.write(workdir, config, (8, 8, 1))
    loop.train(config, workdir, build(config, (8, 8, 1)), digits.load(split="train"), jax.devices()[:1])
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        if "ddpm_jax.load" in block or "run.denoise" in block:
            exec(block, names)
    assert isinstance(names["run"], ddpm_jax.training.run.Run) and len(names["run"].compiled) == 4
    assert {path.name for path in tmp_path.glob("*.*")} == {"steps.png", "eta.png", "film.gif"}
    assert names["x"].shape == (8, 8, 8, 1) and names["evaluations"] == 50
