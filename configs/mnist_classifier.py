"""A classifier of noised MNIST, which guides the samples of a run of configs/mnist.py.

python -m ddpm_jax.main --config=configs/mnist_classifier.py
python -m ddpm_jax.main --mode=sample --workdir=runs/mnist --config.guidance.classifier=runs/mnist_classifier

Variants of the process must be those of the run that it is to guide. Measured as in experiments/guidance: 500 steps in 2
minutes beside other work on 2 cores of an AMD EPYC (Zen 4), jax 0.10.2, 2026-11-21, loss 1.31, the mean over all levels.
"""

from ddpm_jax.config import presets, variants


def get_config(names: str = ""):
    config = presets.small_images()
    config.task = "classifier"
    config.data.name = "mnist"
    config.network.scale_shift_norm = True
    config.train.steps = 1000
    return variants.apply(config, names)
