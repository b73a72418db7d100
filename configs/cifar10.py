"""CIFAR-10 through tensorflow-datasets, with the network of 35.7 million parameters and the settings of Ho et al. 2020.

python -m ddpm_jax.main --config=configs/cifar10.py

Made for GPUs and TPUs. Not measured: it has been run at smoke size only.
"""

from ddpm_jax import presets, variants


def get_config(names: str = ""):
    config = presets.cifar_ddpm()
    config.data.name = "cifar10"
    return variants.apply(config, names, presets.CIFAR_PUBLISHED)
