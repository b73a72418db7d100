"""Your own images: a folder of PNG, JPEG, WebP, BMP or TIFF files, centre-cropped and resized; sub-folders are labels.

python -m ddpm_jax.main --config=configs/folder.py:small --config.data.path=<folder> --workdir=runs/<name>

small: 32x32, 1.1 million parameters, for a CPU; medium: 64x64, 1.5 million, for a CPU overnight or a GPU; without either
64x64 and 17 million, for a GPU. Not measured to the end: by the 136 images/s of MNIST on 2 cores of an AMD EPYC (Zen 4)
small needs about half an hour there and medium about seven hours.
"""

from ddpm_jax import config as configs
from ddpm_jax.config import variants


def small(config):
    """32x32 for a CPU: the network of configs/mnist.py, 5,000 steps of batch 32"""
    config.data.image_size = 32
    config.network.update(channels=32, groups=8, multipliers=(1, 2, 2), blocks=1, attention=(8,))
    config.optim.update(learning_rate=1e-3, warmup_steps=200)
    config.ema.decays = (0.999,)
    config.train.update(steps=5_000, batch_size=32, log_every=50, sample_every=1_000, checkpoint_every=500)
    config.sampler.update(num_samples=36)


def medium(config):
    """64x64 for a CPU overnight or any GPU: a level more, 20,000 steps of batch 32"""
    small(config)
    config.data.image_size = 64
    config.network.update(multipliers=(1, 2, 2, 2))
    config.ema.decays = (0.9995,)
    config.train.update(steps=20_000, sample_every=2_000, checkpoint_every=1_000)


SIZES = {"small": variants.Variant(small, "network"), "medium": variants.Variant(medium, "network")}


def get_config(names: str = ""):
    config = configs.base()
    config.data.update(name="folder", image_size=64)
    config.network.update(channels=64, groups=16, multipliers=(1, 2, 2, 4), attention=(16,))
    config.optim.warmup_steps = 500
    config.ema.decays = (0.9995,)
    config.train.update(steps=50_000, batch_size=64, sample_every=2_500, checkpoint_every=2_500)
    config.sampler.update(steps=250)
    return variants.apply(config, names, own=SIZES)
