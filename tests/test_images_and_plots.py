import numpy as np
import pytest
from PIL import Image

from ddpm_jax import images, plots


def test_pixels_round_trip_exactly():
    pixels = np.arange(256, dtype=np.uint8)
    floats = np.asarray(images.to_model(pixels))
    assert floats[0] == -1 and floats[-1] == 1
    np.testing.assert_array_equal(images.to_uint8(floats), pixels)
    np.testing.assert_array_equal(images.to_uint8(np.array([-7.0, 7.0, -0.9999])), [0, 255, 0])


def test_grid_places_tiles_with_separators(tmp_path):
    tiles = np.full((5, 50, 50, 1), 255, np.uint8) * np.arange(1, 6, dtype=np.uint8)[:, None, None, None] // 5
    picture = plots.image_grid(tiles)
    assert picture.shape == (2 * 51 + 1, 3 * 51 + 1, 3)
    assert (picture[0] == 96).all() and (picture[:, 51] == 96).all()
    for index in range(5):
        assert (picture[1 + index // 3 * 51, 1 + index % 3 * 51] == tiles[index, 0, 0]).all()
    plots.save_png(tmp_path / "grid.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), picture)
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_picture_keeps_the_rows_that_it_was_made_of():
    """Three rows of 8 stay three rows of 8; without a word the grid is the squarest."""
    grey = np.linspace(-1, 1, 24, dtype=np.float32)
    samples = np.tile(grey[:, None, None, None], (1, 48, 48, 1))
    shown = plots.picture(samples, columns=8)[24::49, 24::49, 0]
    np.testing.assert_array_equal(shown, images.to_uint8(grey).reshape(3, 8))
    assert plots.picture(samples).shape == (5 * 49 + 1, 5 * 49 + 1, 3)


def test_the_names_of_kinds_stand_beside_their_rows():
    """In a white margin as wide as the longest name; long names are cut; the grid itself is as without names."""
    samples = np.zeros((6, 8, 8, 1), np.float32)
    plain = plots.picture(samples, kinds=3)
    named = plots.picture(samples, kinds=3, names=("cat", "", "d" * 500))
    width = named.shape[1] - plain.shape[1]
    assert 20 < width < 200
    np.testing.assert_array_equal(named[:, width:], plain)
    rows = np.array_split(named[:, :width], 3)
    assert [bool((row < 128).any()) for row in rows] == [True, False, True]
    assert all((row[0] == 255).all() and (row[-1] == 255).all() for row in rows)
    assert plots.picture(samples[:3], kinds=3, names=("a", "b", "c")).shape == plots.picture(samples[:3], kinds=3).shape


def test_small_tiles_are_enlarged_and_colour_is_kept():
    colour = np.zeros((1, 8, 8, 3), np.uint8) + np.array([1, 2, 3], np.uint8)
    picture = plots.image_grid(colour)
    assert picture.shape[0] > 48 and (picture[10, 10] == [1, 2, 3]).all()


@pytest.mark.parametrize("wrong", [np.zeros((2, 8, 8, 1)), np.zeros((8, 8, 1), np.uint8), np.zeros((1, 8, 8, 4), np.uint8)])
def test_what_is_no_image_is_refused(wrong):
    with pytest.raises(ValueError, match="uint8"):
        plots.image_grid(wrong)
