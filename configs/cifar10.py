"""CIFAR-10 through tensorflow-datasets, with the network of 35.7 million parameters and the settings of Ho et al. 2020.

python -m ddpm_jax.main --config=configs/cifar10.py

vp, subvp and flow train DDPM++ (61.8 million), ve NCSN++ (62.8 million) and edm a wider DDPM++ (55.7 million), as their
papers did.

Made for GPUs and TPUs. Not measured: it has been run at smoke size only.
"""

from ddpm_jax.config import presets, variants


def get_config(names: str = ""):
    config = presets.cifar_ddpm()
    config.data.name = "cifar10"
    return variants.apply(config, names, presets.CIFAR_PUBLISHED)
