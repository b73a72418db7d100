r"""MNIST through tensorflow-datasets: 60,000 grey images of 28x28, a U-Net of 1.1 million parameters.

python -m ddpm_jax.main --config=configs/mnist.py

Expect a loss of 0.025 at the end and samples most of which read as digits (experiments/first_runs/mnist.png). Measured on
2 cores of an AMD EPYC (Zen 4), jax 0.10.2, 2026-11-21: 136 images/s while nothing else ran, which makes 20 minutes; the run
itself took 45, because the cores did other work too. For better samples: --config.train.steps=20000. On a GPU: not measured.

python -m ddpm_jax.main --mode=eval --workdir=runs/mnist --config.eval.bpd --config.eval.num_examples=100 \
    --config.eval.batch_size=50 --config.eval.bound_terms=100

Bits per dimension of the first 100 test images: 1.648 +- 0.027 along the ODE (dequantised with seed 0, dopri5 at 1e-5, one
Rademacher probe, t_min 0.001, 422 evaluations); at most 2.187 +- 0.077 by the bound (100 of the 1000 steps, large variance),
0.962 of it the decoder's. Same machine and day: 10 minutes beside other work.
"""

from ddpm_jax.config import presets, variants


def get_config(names: str = ""):
    config = presets.small_images()
    config.data.name = "mnist"
    return variants.apply(config, names)
