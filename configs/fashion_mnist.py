"""Fashion-MNIST through tensorflow-datasets: 60,000 grey images of 28x28, with MNIST's network and settings.

python -m ddpm_jax.main --config=configs/fashion_mnist.py

Not measured; as fast as configs/mnist.py, whose docstring has its speed.
"""

from ddpm_jax.config import presets, variants


def get_config(names: str = ""):
    config = presets.small_images()
    config.data.name = "fashion_mnist"
    return variants.apply(config, names)
