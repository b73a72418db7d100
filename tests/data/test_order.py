import numpy as np
import pytest

from ddpm_jax.data import batch_indices, steps_per_epoch
from ddpm_jax.errors import UserError


def epoch_of(seed, epoch, num_examples, batch_size):
    per_epoch = steps_per_epoch(num_examples, batch_size)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    return np.concatenate([batch_indices(seed, step, num_examples, batch_size) for step in steps])


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_visits_every_example_once(epoch):
    np.testing.assert_array_equal(np.sort(epoch_of(3, epoch, 96, 8)), np.arange(96))


def test_the_short_last_batch_is_dropped():
    assert steps_per_epoch(103, 10) == 10
    seen = epoch_of(0, 0, 103, 10)
    assert len(seen) == len(set(seen.tolist())) == 100
    # Step 10 is the first of the next epoch, a whole batch.
    np.testing.assert_array_equal(batch_indices(0, 10, 103, 10), epoch_of(0, 1, 103, 10)[:10])


def test_which_examples_are_dropped_changes_with_the_epoch():
    dropped = [frozenset(range(19)) - set(epoch_of(0, epoch, 19, 10).tolist()) for epoch in range(4)]
    assert len(set(dropped)) == 4


def test_order_differs_by_epoch_and_by_seed():
    orders = [epoch_of(seed, epoch, 64, 64).tolist() for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert list(range(64)) not in orders


def test_every_position_is_equally_likely():
    first = [batch_indices(0, epoch, 4, 4)[0] for epoch in range(4000)]
    counts = np.bincount(first, minlength=4)
    assert np.all(np.abs(counts - 1000) < 4 * np.sqrt(4000 * 0.25 * 0.75))


def test_resuming_is_starting_at_k():
    run = [batch_indices(7, step, 50, 8) for step in range(20)]
    for step in (19, 3, 11, 6):  # any step, in any order, without the ones before
        np.testing.assert_array_equal(batch_indices(7, step, 50, 8), run[step])


def test_the_order_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(epoch_of(1, 2, 60, 6), epoch_of(1, 2, 60, 20))


def test_type_and_that_writing_to_a_batch_harms_no_other():
    batch = batch_indices(0, 0, 10, 4)
    assert (batch.dtype, batch.shape) == (np.int32, (4,))
    before = batch.copy()
    batch[:] = -1
    np.testing.assert_array_equal(batch_indices(0, np.int64(0), 10, 4), before)


def test_the_order_is_the_same_on_every_version():
    # Found with NumPy 2.4 and 2.5: a change here would silently reorder everyone's runs.
    words = np.random.PCG64(np.random.SeedSequence([5, 1])).random_raw(8)
    np.testing.assert_array_equal(batch_indices(5, 1, 8, 8), np.argsort(words))
    np.testing.assert_array_equal(batch_indices(5, 1, 8, 8), [7, 6, 1, 5, 4, 2, 0, 3])


@pytest.mark.parametrize(("num_examples", "batch_size"), [(10, 11), (10, 0), (0, 1)])
def test_a_batch_size_out_of_range_names_both_numbers(num_examples, batch_size):
    with pytest.raises(UserError, match=f"train.batch_size is {batch_size}, .* {num_examples} examples"):
        batch_indices(0, 0, num_examples, batch_size)


def test_negative_seed_and_step_are_refused():
    with pytest.raises(UserError, match="-1"):
        batch_indices(-1, 0, 10, 2)
    with pytest.raises(ValueError, match="-1"):
        batch_indices(0, -1, 10, 2)
