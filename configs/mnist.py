"""MNIST through tensorflow-datasets: 60,000 grey images of 28x28.

python -m ddpm_jax.main --config=configs/mnist.py
"""

from ddpm_jax import presets, variants


def get_config(names: str = ""):
    config = presets.small_images()
    config.data.name = "mnist"
    return variants.apply(config, names)
