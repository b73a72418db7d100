import chex
import numpy as np
import pytest

from ddpm_jax.data import SOURCES, digits
from ddpm_jax.errors import UserError


def test_shapes_types_and_range():
    source = digits.load(split="train")
    chex.assert_shape(source.arrays["image"], (1797, 8, 8, 1))
    assert (source.arrays["image"].dtype, source.arrays["label"].dtype) == (np.uint8, np.int32)
    assert source.num_classes == 10
    assert set(source.arrays["label"].tolist()) == set(range(10))
    assert SOURCES["digits"] is digits.load


def test_grey_levels_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    source = digits.load(split="train")
    assert set(np.unique(source.arrays["image"])) == {round(v * 255 / 16) for v in range(17)}
    np.testing.assert_array_equal(np.round(source.arrays["image"][..., 0] * (16 / 255)), bunch.images)
    np.testing.assert_array_equal(source.arrays["label"], bunch.target)


def test_another_split_is_refused():
    with pytest.raises(UserError, match="'train'.*'test'"):
        digits.load(split="test")
