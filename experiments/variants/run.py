"""The pictures of README.md: by DPM-Solver++(2M) in 50 evaluations, losses.png by the samplers of the variants.

    for v in vp subvp ve edm flow v; do python -m ddpm_jax.main --config=configs/digits.py:$v --config.network.groups=32; done
    for v in improved ncsn min_snr; do python -m ddpm_jax.main --config=configs/digits.py:$v; done
    python -m ddpm_jax.main --config=configs/digits.py:improved_vlb --config.train.steps=1500
    for v in vp subvp ve edm flow v; do python -m ddpm_jax.main --config=configs/toy2d.py:$v; done
    python -m experiments.variants.run

Reads the runs in runs/, writes digits.png, losses.png and toy2d.png beside this file, and prints how far the rows of the first
are apart.
"""

from pathlib import Path

import numpy as np

import ddpm_jax
from ddpm_jax import plots
from ddpm_jax.images import to_uint8

VARIANTS = ("vp", "subvp", "ve", "edm", "flow", "v")
LOSSES = ("improved", "improved_vlb", "ncsn", "min_snr")
SAMPLER = {"name": "dpmpp_2m", "grid": "log_snr", "steps": 50}
HERE = Path(__file__).parent


def main() -> None:
    digits = {name: ddpm_jax.load(f"runs/digits-{name}").sample(12, **SAMPLER) for name in VARIANTS}
    rows = np.concatenate(list(digits.values()))
    plots.save_png(HERE / "digits.png", plots.image_grid(to_uint8(rows), columns=12))
    other = np.roll(np.arange(12), 1)
    for name, images in digits.items():
        same = np.sqrt(np.mean((images - digits["v"]) ** 2))
        different = np.sqrt(np.mean((images[other] - digits["v"]) ** 2))
        print(f"{name:6s} RMS distance to v: {same:.2f} from the same noise, {different:.2f} from another")
    rows = np.concatenate([ddpm_jax.load(f"runs/digits-{name}").sample(12) for name in LOSSES])
    plots.save_png(HERE / "losses.png", plots.image_grid(to_uint8(rows), columns=12))
    clouds = [plots.scatter(ddpm_jax.load(f"runs/toy2d-{name}").sample(4096, **SAMPLER), side=240) for name in VARIANTS]
    plots.save_png(HERE / "toy2d.png", plots.image_grid(np.stack(clouds), columns=3))


if __name__ == "__main__":
    main()
