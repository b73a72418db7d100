"""Points in the plane and a perceptron: config.data.pattern is moons, ring, checkerboard or swiss_roll.

python -m ddpm_jax.main --config=configs/toy2d.py --config.data.pattern=ring --workdir=runs/ring
"""

from ddpm_jax import config as configs
from ddpm_jax import variants


def get_config(names: str = ""):
    config = configs.base()
    config.data.name = "toy2d"
    config.network.update(name="mlp", channels=128, blocks=3)
    config.optim.update(learning_rate=2e-3, warmup_steps=100)
    config.ema.decay = 0.995
    config.train.update(steps=3000, batch_size=256, steps_per_call=20, log_every=500, sample_every=0, checkpoint_every=1500)
    config.sampler.update(name="ddim", steps=100, clip="none", num_samples=4096, batch_size=4096)
    return variants.apply(config, names)
