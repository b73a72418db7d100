"""CIFAR-10 from the five training batches of its binary version in config.data.raw_dir, the last 5,000 images held out.

python -m ddpm_jax.main --config=configs/cifar10_raw.py --config.data.raw_dir=<folder>

The network and settings of configs/cifar10.py, and as that not measured.
"""

from ddpm_jax.config import presets, variants


def get_config(names: str = ""):
    config = presets.cifar_ddpm()
    config.data.name = "cifar10_raw"
    return variants.apply(config, names, presets.CIFAR_PUBLISHED)
