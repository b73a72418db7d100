"""A classifier of noised MNIST, which guides the samples of a run of configs/mnist.py.

python -m ddpm_jax.main --config=configs/mnist_classifier.py
python -m ddpm_jax.main --mode=sample --workdir=runs/mnist --config.guidance.classifier=runs/mnist_classifier

Variants of the process must be those of the run that it is to guide. Not measured.
"""

from ddpm_jax import presets, variants


def get_config(names: str = ""):
    config = presets.small_images()
    config.task = "classifier"
    config.data.name = "mnist"
    config.network.scale_shift_norm = True
    config.train.steps = 1000
    return variants.apply(config, names)
