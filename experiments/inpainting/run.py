"""The picture and the table of README.md: the lower half of 100 digits drawn anew by every method.

    python -m ddpm_jax.main --config=configs/digits.py --config.network.groups=32
    python -m experiments.inpainting.run [run directory]

Reads runs/digits, writes digits.png beside this file and prints a line per method.
"""

import sys
import time
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

import ddpm_jax
from ddpm_jax import plots
from ddpm_jax.data import digits
from ddpm_jax.images import to_model, to_uint8

SAMPLER = {"name": "ddim", "eta": 1.0, "steps": 50, "batch_size": 100}
METHODS = {
    "replacement": {},
    "repaint": {"resamplings": 10},
    "dps": {"zeta": 1.0},
    "pigdm": {},
    "mmps": {"iterations": 3},
}
PER_CLASS = 10
HERE = Path(__file__).parent


def main() -> None:
    run = ddpm_jax.load(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
    data = digits.load(split="train").arrays
    judge = SVC().fit(data["image"].reshape(-1, 64) / 255.0, data["label"])
    chosen = np.concatenate([np.flatnonzero(data["label"] == k)[:PER_CLASS] for k in range(10)])
    originals, labels = np.asarray(to_model(data["image"][chosen])), data["label"][chosen]
    known = np.arange(8)[:, None] < np.full(8, 4)
    columns = [originals, np.where(known[..., None], originals, 0.0)]
    for method, knobs in METHODS.items():
        start = time.monotonic()
        drawn = run.inpaint(originals, known, method=method, **knobs, **SAMPLER)
        seconds = time.monotonic() - start
        right = np.mean(judge.predict(to_uint8(drawn).reshape(-1, 64) / 255.0) == labels)
        distance = np.sqrt(np.mean((drawn - originals)[:, ~known] ** 2))
        print(f"{method:12s} {right:.0%} of the original's class, RMS distance {distance:.2f}, {seconds:.0f} s", flush=True)
        columns.append(drawn)
    rows = np.stack([column[::PER_CLASS] for column in columns], 1)
    plots.save_png(HERE / "digits.png", plots.image_grid(to_uint8(rows.reshape(-1, 8, 8, 1)), columns=len(columns)))


if __name__ == "__main__":
    main()
