import numpy as np
import pytest

from ddpm_jax.data import SOURCES, batch_indices, toy2d
from ddpm_jax.diffusion.keys import Purpose, words_of
from ddpm_jax.errors import UserError

N = 20_000


def draw(pattern, **options):
    source = toy2d.load(split="train", pattern=pattern, num_examples=N, **options)
    return source.arrays["image"].astype(np.float64), source.arrays["label"]


@pytest.mark.parametrize("pattern", toy2d.PATTERNS)
def test_shapes_types_range_and_labels(pattern):
    source = SOURCES["toy2d"](split="train", pattern=pattern, num_examples=N)
    points, labels = source.arrays["image"], source.arrays["label"]
    assert (points.dtype, points.shape, labels.dtype, labels.shape) == (np.float32, (N, 2), np.int32, (N,))
    assert source.image_shape == (2,)
    assert np.abs(points).max() < 1.15 and np.abs(points).max(0).min() > 0.5
    assert np.all(np.abs(points.mean(0)) < 0.15)
    counts = np.bincount(labels, minlength=source.num_classes)
    expected = N / source.num_classes
    assert len(counts) == source.num_classes and np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_moons_lie_on_their_half_circles():
    points, labels = draw("moons")
    for moon, sign in ((0, 1), (1, -1)):
        # In units of the radius, around the centre of the circle, the second moon turned by half a turn.
        own = sign * points[labels == moon] * 1.5 + [0.5, 0.25]
        off = np.hypot(*own.T) - 1
        noise = 1.5 * toy2d.MOON_NOISE
        assert abs(off.std() - noise) < 0.05 * noise and abs(off.mean()) < 0.1 * noise
        assert own[:, 1].min() > -6 * noise
        along = (np.arctan2(own[:, 1], own[:, 0]) + np.pi / 2) % (2 * np.pi) - np.pi / 2
        assert abs(along.mean() - np.pi / 2) < 0.05 and abs(along.std() - np.pi / np.sqrt(12)) < 0.05


def test_ring_is_eight_gaussians():
    points, labels = draw("ring")
    for mode in range(8):
        centre = toy2d.RING_RADIUS * np.exp(1j * np.pi / 4 * mode)
        own = points[labels == mode]
        np.testing.assert_allclose(own.mean(0), [centre.real, centre.imag], atol=0.005)
        np.testing.assert_allclose(np.cov(own.T), toy2d.RING_NOISE**2 * np.eye(2), atol=2.5e-4)


def test_checkerboard_fills_the_dark_fields_evenly():
    points, labels = draw("checkerboard")
    row, column = np.floor((points[:, 1] + 1) * 2).astype(int), np.floor((points[:, 0] + 1) * 2).astype(int)
    assert np.all((row + column) % 2 == 0)
    fields = sorted({*zip(row.tolist(), column.tolist(), strict=True)})
    assert fields == [(r, c) for r in range(4) for c in range(4) if (r + c) % 2 == 0]
    np.testing.assert_array_equal(labels, [fields.index(field) for field in zip(row, column, strict=True)])
    inside = (points + 1) * 2 % 1
    np.testing.assert_allclose(np.histogram(inside, 10, (0, 1))[0] / inside.size, 0.1, atol=0.01)


def test_swiss_roll_lies_on_its_spiral():
    points, labels = draw("swiss_roll")
    radius, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    # Of the turns with this direction, the one whose radius is nearest.
    turns = angle[:, None] + 2 * np.pi * np.arange(0, 4)
    off = radius[:, None] - turns / toy2d.ROLL_END
    best = np.abs(off).argmin(1)
    assert np.abs(off[np.arange(N), best]).max() < 6 * toy2d.ROLL_NOISE
    along = (turns[np.arange(N), best] - toy2d.ROLL_START) / (toy2d.ROLL_END - toy2d.ROLL_START)
    assert along.min() > -0.05 and along.max() < 1.05
    clear = np.abs(along * 4 - np.round(along * 4)) > 0.15  # noise moves points over the borders of the quarters
    np.testing.assert_array_equal(labels[clear], np.floor(along * 4)[clear])


def test_points_are_a_function_of_the_seed_and_the_split():
    first, _ = draw("ring", seed=3)
    np.testing.assert_array_equal(draw("ring", seed=3)[0], first)
    assert np.all(draw("ring", seed=4)[0] != first)
    test = toy2d.load(split="test", pattern="ring", num_examples=N, seed=3).arrays["image"]
    assert np.all(test != first.astype(np.float32))


@pytest.mark.parametrize("pattern", toy2d.PATTERNS)
def test_the_order_of_an_epoch_tells_nothing_of_the_points(pattern):
    """At equal seeds too, where they were drawn by the same words once: then the first epoch goes from label to label."""
    _, labels = draw(pattern)

    def correlation(address, epoch):
        return np.corrcoef(np.arange(N), labels[batch_indices(address, epoch, N, N)])[0, 1]

    for epoch in range(4):
        assert abs(correlation(words_of(0, Purpose.BATCHES), epoch)) < 4 / np.sqrt(N)
    assert correlation(words_of(0, Purpose.BATCHES, "shared"), 0) > 0.8


def test_uniform_and_normal_numbers():
    draws = toy2d.Draws(0)
    u = np.sort(draws.uniform(N))
    assert u[0] >= 0 and u[-1] < 1
    assert np.abs(u - (np.arange(N) + 0.5) / N).max() < 2 / np.sqrt(N)  # Kolmogorov and Smirnov
    z = draws.normal(N)
    np.testing.assert_allclose(np.cov(z.T), np.eye(2), atol=0.04)
    assert abs((z**4).mean() - 3) < 0.2 and np.isfinite(z).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"pattern": "spiral"}, "moons, ring, checkerboard, swiss_roll; found pattern 'spiral'"),
        ({"split": "validation"}, "test, train; found split 'validation'"),
        ({"num_examples": 0}, "at least 1; found 0"),
        ({"seed": -1}, "0 or more; found -1"),
    ],
)
def test_wrong_arguments_are_told(options, match):
    with pytest.raises(UserError, match=match):
        toy2d.load(**({"split": "train"} | options))
