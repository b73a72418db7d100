"""Guidance scale against fidelity and variety on MNIST: classifier-free and classifier guidance; encoding and interpolation.

    python -m ddpm_jax.main --config=configs/mnist.py:cond --config.train.steps=1500 --workdir=runs/mnist-cond
    python -m ddpm_jax.main --config=configs/mnist.py
    python -m ddpm_jax.main --config=configs/mnist_classifier.py --config.train.steps=500
    python -m experiments.guidance.run runs/mnist-cond runs/mnist runs/mnist_classifier

Writes scales.png, curves.png and interpolation.png beside this file and prints the tables. README.md says what is measured.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.svm import SVC

import ddpm_jax
from ddpm_jax import images, plots
from ddpm_jax.construct import construct
from ddpm_jax.data import SOURCES
from ddpm_jax.diffusion.edit import slerp

SCALES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
TRAINED_ON, TESTED_ON = 10_000, 5_000  # images, of the judge
EACH, STEPS = 20, 25  # samples of a class, points of the grid
HERE = Path(__file__).parent


def real(run, split, count):
    """The first images [count, H, W, C] of a split of the run's data, in [-1, 1], and their labels."""
    arrays = construct(SOURCES, dict(run.config.data) | {"split": split}).arrays
    return np.asarray(images.to_model(arrays["image"][:count])), arrays["label"][:count]


def judge(run):
    """A support-vector machine trained on real images, and its accuracy on those of the test split."""
    pixels, labels = real(run, "train", TRAINED_ON)
    machine = SVC(C=5.0).fit(pixels.reshape(len(pixels), -1), labels)
    pixels, labels = real(run, "test", TESTED_ON)
    return machine, machine.score(pixels.reshape(len(pixels), -1), labels)


def measure(machine, drawn, labels):
    """Share of samples that the judge gives their label, and the mean RMS distance of two samples of one class."""
    agreed = float(np.mean(machine.predict(np.clip(drawn, -1, 1).reshape(len(drawn), -1)) == labels))
    distances = []
    for label in np.unique(labels):
        flat = drawn[labels == label].reshape(-1, drawn[0].size)
        pairs = np.sqrt(np.mean((flat[:, None] - flat[None]) ** 2, -1))
        distances.append(pairs.sum() / (len(flat) * (len(flat) - 1)))
    return agreed, float(np.mean(distances))


def curves(conditional, plain, classifier) -> None:
    machine, accuracy = judge(plain)
    classes = conditional.num_classes
    labels = np.arange(classes * EACH) % classes
    pixels, its = real(plain, "test", TESTED_ON)
    first = np.concatenate([np.flatnonzero(its == label)[:EACH] for label in range(classes)])
    of_data = measure(machine, pixels[first], its[first])
    print(f"the judge is right on {accuracy:.3f} of {TESTED_ON} real images that it has not seen")
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
            guidance = {"scale": scale, **extra}
            drawn = run.sample(len(labels), labels=range(classes), guidance=guidance, name="ddim", steps=STEPS, batch_size=100)
            found.append(measure(machine, drawn, labels))
            print(f"| {name} | {scale:g} | {found[-1][0]:.3f} | {found[-1][1]:.3f} |", flush=True)
            if not extra:
                columns.append(drawn[:classes])
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
    """Pairs of real images encoded, mixed along the arc between them and decoded; the error of going there and back."""
    given, _ = real(run, "test", 12)
    for name in ("ddim", "heun"):
        for steps in (20, 50, 200):
            back = run.decode(run.encode(given, name=name, steps=steps), name=name, steps=steps)
            print(f"| {name} | {steps} | {np.sqrt(np.mean((back - given) ** 2)):.4f} |", flush=True)
    latents = jnp.asarray(run.encode(given, steps=200))
    mixed = jnp.stack([slerp(latents[0::2], latents[1::2], fraction) for fraction in np.linspace(0, 1, 8)], 1)
    decoded = run.decode(mixed.reshape(-1, *given.shape[1:]), steps=200).reshape(mixed.shape)
    rows = np.concatenate([given[0::2, None], decoded, given[1::2, None]], 1)  # the real ones at the ends
    pixels = images.to_uint8(rows.reshape(-1, *given.shape[1:]))
    plots.save_png(HERE / "interpolation.png", plots.image_grid(pixels, columns=10))


def main() -> None:
    conditional, plain = (ddpm_jax.load(path) for path in sys.argv[1:3])
    curves(conditional, plain, sys.argv[3])
    interpolation(plain)


if __name__ == "__main__":
    main()
