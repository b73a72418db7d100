"""Your own images: a folder of PNG, JPEG, WebP, BMP or TIFF files, centre-cropped and resized to 64x64; sub-folders are labels.

python -m ddpm_jax.main --config=configs/folder.py --config.data.path=<folder> --workdir=runs/<name>

Made for a GPU. Not measured: it has been run at smoke size only.
"""

from ddpm_jax import config as configs
from ddpm_jax import variants


def get_config(names: str = ""):
    config = configs.base()
    config.data.update(name="folder", image_size=64)
    config.network.update(channels=64, groups=16, multipliers=(1, 2, 2, 4), attention=(16,))
    config.optim.warmup_steps = 500
    config.ema.decays = (0.9995,)
    config.train.update(steps=50_000, batch_size=64, sample_every=2_500, checkpoint_every=2_500)
    config.sampler.update(steps=250)
    return variants.apply(config, names)
