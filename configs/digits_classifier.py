"""A classifier of noised digits, which guides the samples of a run of configs/digits.py.

python -m ddpm_jax.main --config=configs/digits_classifier.py
python -m ddpm_jax.main --mode=sample --workdir=runs/digits --config.guidance.classifier=runs/digits_classifier

Variants of the process must be those of the run that it is to guide.

Expect a loss of 1.6 at the end, the mean over all levels of noise: log 10 = 2.3 at the highest three tenths of them, 0.1 at the
lowest four. Measured on 2 cores of an AMD EPYC (Zen 4), jax 0.10.2, 2026-11-21: 22 s, while nothing else ran.
"""

from ddpm_jax import config as configs
from ddpm_jax.config import variants


def get_config(names: str = ""):
    config = configs.base()
    config.task = "classifier"
    config.data.name = "digits"
    config.network.update(channels=32, groups=8, multipliers=(1, 2), blocks=1, attention=(4,), scale_shift_norm=True)
    config.optim.update(learning_rate=1e-3, warmup_steps=50)
    config.ema.decays = (0.99,)
    config.train.update(steps=300, log_every=50, checkpoint_every=150)
    return variants.apply(config, names)
