"""MNIST through tensorflow-datasets: 60,000 grey images of 28x28, a U-Net of 1.1 million parameters.

python -m ddpm_jax.main --config=configs/mnist.py

Expect a loss of 0.025 at the end and samples most of which read as digits (experiments/first_runs/mnist.png). Measured on
2 cores of an AMD EPYC (Zen 4), 2026-11-20: 72 images/s while little else ran, which makes 37 minutes; the run itself took
68, because the cores did other work too and it was killed and resumed once. For better samples:
--config.train.steps=20000. On a GPU: not measured.
"""

from ddpm_jax import presets, variants


def get_config(names: str = ""):
    config = presets.small_images()
    config.data.name = "mnist"
    return variants.apply(config, names)
