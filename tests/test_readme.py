"""The README's Python runs as it stands."""

import re
from pathlib import Path

import numpy as np

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
