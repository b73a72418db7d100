"""Starting points that several config files share."""

from ml_collections import ConfigDict

from ddpm_jax import config as configs


def small_images() -> ConfigDict:
    """A U-Net of 1.1 million parameters for grey images of 28x28."""
    config = configs.base()
    config.network.update(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(7,))
    config.optim.update(learning_rate=1e-3, warmup_steps=200)
    config.ema.decays = (0.999,)
    config.train.update(steps=2500, batch_size=64, log_every=50, sample_every=500, checkpoint_every=250)
    config.sampler.update(steps=250)
    return config


def cifar_ddpm() -> ConfigDict:
    """The network and settings of Ho et al. 2020 for CIFAR-10: random flips, dropout 0.1, 800,000 steps of batch 128."""
    config = configs.base()
    config.data.flip = True
    config.network.dropout = 0.1
    return config
