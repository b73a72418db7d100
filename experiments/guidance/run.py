"""Guidance scale against fidelity and variety on digits: classifier-free and classifier guidance; encoding and interpolation.

    python -m ddpm_jax.main --config=configs/digits.py:cond --workdir=runs/digits-cond
    python -m ddpm_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m ddpm_jax.main --config=configs/digits_classifier.py --workdir=runs/digits-classifier
    python -m experiments.guidance.run runs/digits-cond runs/digits runs/digits-classifier

Writes scales.png, curves.png and interpolation.png beside this file and prints the tables. README.md says what is measured.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import ddpm_jax
from ddpm_jax import images, plots
from ddpm_jax.data import digits
from ddpm_jax.diffusion.edit import slerp
from ddpm_jax.diffusion.grids import uniform
from ddpm_jax.diffusion.sample import encode, sample, sample_keys
from ddpm_jax.diffusion.samplers import SAMPLERS

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
CLASSES, EACH, STEPS = 10, 30, 50
HERE = Path(__file__).parent


def judge():
    """A support-vector machine on half of the real digits, and its accuracy on the other half."""
    pixels, labels = load_digits(return_X_y=True)
    train, test, its, others = train_test_split(pixels, labels, test_size=0.5, random_state=0)
    machine = SVC(gamma=0.001).fit(train, its)
    return machine, machine.score(test, others)


def measure(machine, drawn, labels):
    """Share of samples that the judge gives their label, and the mean RMS distance of two samples of one class."""
    pixels = (np.clip(drawn, -1, 1) + 1) * 8  # the data set's own scale, 0 to 16
    agreed = float(np.mean(machine.predict(pixels.reshape(len(drawn), -1)) == labels))
    distances = []
    for label in range(CLASSES):
        flat = drawn[labels == label].reshape(-1, drawn[0].size)
        pairs = np.sqrt(np.mean((flat[:, None] - flat[None]) ** 2, -1))
        distances.append(pairs.sum() / (len(flat) * (len(flat) - 1)))
    return agreed, float(np.mean(distances))


def curves(conditional, plain, classifier) -> None:
    machine, accuracy = judge()
    labels = np.arange(CLASSES * EACH) % CLASSES
    real = digits.load(split="train").arrays
    first = np.concatenate([np.flatnonzero(real["label"] == label)[:EACH] for label in range(CLASSES)])
    of_data = measure(machine, np.asarray(images.to_model(real["image"][first])), real["label"][first])
    print(f"the judge is right on {accuracy:.3f} of the digits that it has not seen")
    print(f"| data | | {of_data[0]:.3f} | {of_data[1]:.3f} |", flush=True)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, columns = figure.subplots(), []
    for name, run, extra in (
        ("classifier-free", conditional, {}),
        ("classifier", plain, {"classifier": str(classifier)}),
        ("conditional and classifier", conditional, {"classifier": str(classifier)}),
    ):
        found = []
        for scale in SCALES:
            drawn = run.sample(
                len(labels), labels=tuple(range(CLASSES)), guidance={"scale": scale, **extra}, name="ddim", steps=STEPS,
                batch_size=len(labels),
            )  # fmt: skip
            found.append(measure(machine, drawn, labels))
            print(f"| {name} | {scale:g} | {found[-1][0]:.3f} | {found[-1][1]:.3f} |", flush=True)
            if not extra:
                columns.append(drawn[:CLASSES])
        agreed, variety = zip(*found, strict=True)
        axes.plot(variety, agreed, marker="o", label=name)
        for scale, x, y in zip(SCALES, variety, agreed, strict=True):
            axes.annotate(f"{scale:g}", (x, y), fontsize=7, xytext=(2, 3), textcoords="offset points")
    axes.plot(*of_data[::-1], marker="*", markersize=12, color="black", linestyle="", label="data")
    axes.set(xlabel="variety: RMS distance within a class", ylabel="fidelity: agreement of the judge")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(HERE / "curves.png", dpi=110)
    by_class = np.stack(columns, 1).reshape(-1, *columns[0].shape[1:])  # a row per class, a column per scale
    plots.save_png(HERE / "scales.png", plots.image_grid(images.to_uint8(by_class), columns=len(SCALES)))


def interpolation(run) -> None:
    """Pairs of real digits encoded, mixed along the arc between them and decoded; the error of going there and back."""
    real = jnp.asarray(images.to_model(digits.load(split="train").arrays["image"][:16]))
    up = jax.jit(lambda x, times, sampler: encode(sampler, run.denoise, run.process, times, x).x)
    keys = sample_keys(0, jnp.arange(64))

    @jax.jit
    def down(x, times, sampler):
        return sample(sampler, run.denoise, run.process, times, keys[: len(x)], real.shape[1:], x=x, last="stop").x

    for name in ("ddim", "heun"):
        for steps in (20, 50, 200):
            times, sampler = uniform(run.process, steps=steps), SAMPLERS[name]()
            back = down(up(real, times[::-1], sampler), times, sampler)
            print(f"| {name} | {steps} | {float(jnp.sqrt(jnp.mean((back - real) ** 2))):.4f} |", flush=True)
    times, sampler = uniform(run.process, steps=200), SAMPLERS["ddim"]()
    latent = up(real[:12], times[::-1], sampler)
    mixed = jnp.concatenate([slerp(latent[0::2], latent[1::2], fraction)[:, None] for fraction in np.linspace(0, 1, 8)], 1)
    decoded = down(mixed.reshape(-1, *real.shape[1:]), times, sampler).reshape(mixed.shape)
    rows = jnp.concatenate([real[0:12:2, None], decoded, real[1:12:2, None]], 1)  # the real ones at the ends
    plots.save_png(
        HERE / "interpolation.png", plots.image_grid(images.to_uint8(np.asarray(rows).reshape(-1, *real.shape[1:])), columns=10)
    )


def main() -> None:
    conditional, plain = (ddpm_jax.load(path) for path in sys.argv[1:3])
    curves(conditional, plain, sys.argv[3])
    interpolation(plain)


if __name__ == "__main__":
    main()
