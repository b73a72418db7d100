"""Starting points that several config files share."""

from collections.abc import Callable

from ml_collections import ConfigDict

from ddpm_jax import config as configs


def small_images() -> ConfigDict:
    """A U-Net of 1.1 million parameters for grey images of 28x28."""
    config = configs.base()
    config.network.update(channels=32, groups=8, multipliers=(1, 2, 2), blocks=1, attention=(7,))
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


def ddpmpp(config: ConfigDict) -> None:
    """The U-Net's options that make it DDPM++, of 4 blocks per level (8: "deep") (Song et al. 2021, score SDE, appendix H)."""
    config.network.update(blocks=4, skip_rescale=True, single_up_attention=True)
    config.network.update(residual_resample=True, resample_projection=True)


def ncsnpp(config: ConfigDict) -> None:
    """Those that make it NCSN++: for processes that show the network log sigma (ve, edm)."""
    ddpmpp(config)
    config.network.update(time_embedding="fourier", resampling="fir", progressive_input=True)


def _vp(config):
    """DDPM++ cont. (Song et al. 2021, appendix H)."""
    ddpmpp(config)
    config.train.steps = 950_000


def _ve(config):
    """NCSN++ cont. (Song et al. 2021, appendix H and code), whose pixels lie in [0, 1]: in [-1, 1], noise is twice as large.

    Its loss is half the sum of 3072 squared errors, not their mean: clipping and Adam's epsilon are in that unit.
    """
    ncsnpp(config)
    config.process.update(sigma_min=0.02, sigma_max=100.0)
    config.optim.update(clip_norm=1 / 1536, eps=1e-8 / 1536)
    config.ema.decays = (0.999,)
    config.train.steps = 950_000


def _edm(config):
    """DDPM++ as in Karras et al. 2022, table 7 and code: three levels of equal width, a longer and faster training.

    Without their augmentation: 200 million images, averages of half-life 500,000 images. As for ve, Adam's epsilon is that of
    their loss, a sum of 3072 squared errors, in the unit of their mean.
    """
    ddpmpp(config)
    config.network.update(multipliers=(2, 2, 2), dropout=0.13)
    config.optim.update(learning_rate=1e-3, warmup_steps=19_531, clip_norm=0.0, eps=1e-8 / 3072)
    config.ema.decays = (0.99929,)
    config.train.update(steps=390_625, batch_size=512)


def _rectified_flow(config):
    """DDPM++ (Liu et al. 2023, section 5 and code)."""
    ddpmpp(config)
    config.network.dropout = 0.15
    config.ema.decays = (0.999999,)
    config.train.steps = 1_300_000


def _improved(config):
    """Nichol & Dhariwal 2021, appendix A and code, the cosine schedule's dropout."""
    config.network.update(blocks=3, attention=(16, 8), heads=4, scale_shift_norm=True, dropout=0.3)
    config.optim.update(learning_rate=1e-4, warmup_steps=0, clip_norm=0.0)
    config.train.steps = 500_000


def _ncsnv2(config):
    """Song & Ermon 2020, appendix B and code; pixels and loss as for ve."""
    config.process.update(sigma_min=0.02, sigma_max=100.0)
    config.optim.update(learning_rate=1e-4, warmup_steps=0, clip_norm=0.0, eps=1e-8 / 1536)
    config.ema.decays = (0.999,)
    config.train.steps = 300_000


# What the papers trained on CIFAR-10, and how, on top of `cifar_ddpm`. NCSNv2's RefineNet is not here: it keeps that U-Net.
CIFAR_PUBLISHED: dict[str, Callable[[ConfigDict], None]] = {
    "vp": _vp,
    "subvp": _vp,
    "ve": _ve,
    "edm": _edm,
    "flow": _rectified_flow,
    "improved": _improved,
    "improved_vlb": _improved,
    "ncsn": _ncsnv2,
}
