"""MNIST through tensorflow-datasets: 60,000 grey images of 28x28.

python -m ddpm_jax.main --config=configs/mnist.py
"""

from ddpm_jax import config as configs
from ddpm_jax import variants


def get_config(names: str = ""):
    config = configs.base()
    config.data.name = "mnist"
    config.network.update(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(7,))
    config.optim.update(learning_rate=1e-3, warmup_steps=200)
    config.ema.decay = 0.999
    config.train.update(steps=2500, batch_size=64, log_every=50, sample_every=500, checkpoint_every=250)
    config.sampler.update(steps=250)
    return variants.apply(config, names)
