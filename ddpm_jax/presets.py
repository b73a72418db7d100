"""Starting points that several config files share."""

from collections.abc import Callable

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


def _score_sde(ema_decay):
    def edit(config):
        config.ema.decays = (ema_decay,)
        config.train.steps = 950_000

    return edit


def _edm(config):
    """Karras et al. 2022, table 7, without their augmentation: 200 million images, averages of half-life 500,000 images."""
    config.network.dropout = 0.13
    config.optim.update(learning_rate=1e-3, warmup_steps=19_531, clip_norm=0.0)
    config.ema.decays = (0.99929,)
    config.train.update(steps=390_625, batch_size=512)


def _rectified_flow(config):
    """Liu et al. 2023, section 5 and code."""
    config.network.dropout = 0.15
    config.ema.decays = (0.999999,)
    config.train.steps = 1_300_000


def _improved(config):
    """Nichol & Dhariwal 2021, appendix A and code, the cosine schedule's dropout."""
    config.network.update(blocks=3, attention=(16, 8), heads=4, scale_shift_norm=True, dropout=0.3)
    config.optim.update(learning_rate=1e-4, warmup_steps=0, clip_norm=0.0)
    config.train.steps = 500_000


def _ncsnv2(config):
    """Song & Ermon 2020, appendix B."""
    config.optim.update(learning_rate=1e-4, warmup_steps=0, clip_norm=0.0)
    config.ema.decays = (0.999,)
    config.train.steps = 300_000


# What the papers trained CIFAR-10 with, on top of `cifar_ddpm` (whose U-Net stays: theirs are deeper).
CIFAR_PUBLISHED: dict[str, Callable[[ConfigDict], None]] = {
    "vp": _score_sde(0.9999),
    "subvp": _score_sde(0.9999),
    "ve": _score_sde(0.999),
    "edm": _edm,
    "flow": _rectified_flow,
    "improved": _improved,
    "improved_vlb": _improved,
    "ncsn": _ncsnv2,
}
