"""Points in the plane and a perceptron: config.data.pattern is moons, ring, checkerboard or swiss_roll.

python -m ddpm_jax.main --config=configs/toy2d.py --config.data.pattern=ring --workdir=runs/ring

Expect the pattern with some points beside it (experiments/first_runs/swiss_roll.png). Measured on 2 cores of an AMD EPYC
(Zen 4), jax 0.10.2, 2026-11-20: 40 s the first time, 20 s with the compiled programs in the cache.
"""

from ddpm_jax import config as configs
from ddpm_jax.config import variants


def get_config(names: str = ""):
    config = configs.base()
    config.data.name = "toy2d"
    config.network.update(name="mlp", channels=128, blocks=3)
    config.optim.update(learning_rate=2e-3, warmup_steps=100)
    config.ema.decays = (0.995,)
    config.train.update(steps=3000, batch_size=256, steps_per_call=20, log_every=500, sample_every=0, checkpoint_every=1500)
    config.sampler.update(name="ddim", steps=100, clip="none", num_samples=4096, batch_size=4096)
    config.eval.update(probe="exact", num_examples=2000, batch_size=2000)
    return variants.apply(config, names)
