import inspect
import itertools
import threading
import time

import numpy as np
import pytest

from ddpm_jax.construct import construct, takes
from ddpm_jax.data import SOURCES, Source, Streamed, batch_indices, prefetch

ARRAYS = {"image": np.arange(60, dtype=np.uint8).reshape(10, 2, 3, 1), "label": np.arange(10, dtype=np.int32)}


def test_both_kinds_have_one_face():
    held = Source(ARRAYS, 10)
    streamed = Streamed(10, (2, 3, 1), 10, held.gather)
    for name in ("num_examples", "image_shape", "num_classes"):
        assert getattr(held, name) == getattr(streamed, name)
    assert repr(held) == "Source(10 of [2, 3, 1], 10 classes)"
    indices = np.array([7, 0, 7])
    for source in (held, streamed):
        batch = source.gather(indices)
        assert sorted(batch) == ["image", "label"]
        np.testing.assert_array_equal(batch["image"], ARRAYS["image"][[7, 0, 7]])
        np.testing.assert_array_equal(batch["label"], [7, 0, 7])


def test_prefetch_gives_the_batches_in_order_from_any_step_on():
    source = Source(ARRAYS, 10)
    rows = [batch_indices(0, k, 10, 4) for k in range(9)]
    for start in (0, 5):
        found = [batch["label"].tolist() for batch in prefetch(source, rows[start:])]
        assert found == [row.tolist() for row in rows[start:]]
    assert list(prefetch(source, [])) == []


def test_prefetch_reads_ahead_but_not_far_and_stops():
    asked, names = [], set()

    def gather(indices):
        asked.append(int(indices[0]))
        names.add(threading.current_thread().name)
        return {"image": indices}

    batches = prefetch(Streamed(10, (1,), 1, gather), (np.array([k]) for k in itertools.count()), depth=3)
    for k in range(3):
        assert next(batches)["image"] == [k]
    deadline = time.monotonic() + 5
    while len(asked) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert asked == [0, 1, 2, 3, 4, 5]
    batches.close()
    assert not {thread.name for thread in threading.enumerate()} & names


def test_prefetch_raises_at_the_batch_that_fails():
    def gather(indices):
        if indices[0] == 1:
            raise OSError("gone")
        return {"image": indices}

    batches = prefetch(Streamed(3, (1,), 1, gather), [np.array([k]) for k in range(3)])
    assert next(batches)["image"] == [0]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_every_named_source_takes_keyword_arguments_with_defaults_but_for_a_few():
    for constructor in SOURCES.values():
        for name, parameter in inspect.signature(constructor).parameters.items():
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.default is not parameter.empty or name in ("split", "path", "image_size")


def test_any_other_name_is_a_set_of_tfds():
    assert "svhn_cropped" in SOURCES and "downsampled_imagenet/64x64" in SOURCES and "digits" in SOURCES
    assert "svhn_cropped" not in list(SOURCES)
    for bad in ("", "../mnist", "/tmp", "a/b/c", "a b", "Ümlaut", "a/..", "a/b\n", 3, None):
        assert bad not in SOURCES
        with pytest.raises(KeyError):
            SOURCES[bad]
    constructor = SOURCES["svhn_cropped"]
    assert takes(constructor, "data_dir") and takes(constructor, "split")
    assert not takes(constructor, "raw_dir") and not takes(constructor, "path")
    section = {"name": "digits", "split": "train", "data_dir": "", "path": ""}
    assert construct(SOURCES, section).num_examples == 1797
