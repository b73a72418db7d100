import itertools
import os
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import SOURCES, Source, Streamed, batch_indices, folder
from ddpm_jax.runs import resumable, run_directory
from ddpm_jax.tasks import build
from ddpm_jax.training.feed import open_feed


def streamed(source):
    return Streamed(source.num_examples, source.image_shape, source.num_classes, source.gather)


def test_both_kinds_give_every_device_the_same_examples(tiny_source):
    devices = jax.devices()[:4]

    def rows_of(k):
        return batch_indices(0, k, 48, 16)

    seen = []
    for source in (tiny_source, streamed(tiny_source)):
        axes, calls = open_feed(source, rows_of, start=5, per_call=2, devices=devices)
        per_device = []
        for data, indices in itertools.islice(calls, 3):
            image = np.asarray(data["image"])
            for device in range(4):
                images = image if axes[0] is None else image[device]
                places = indices[device] if axes[1] == 0 else indices
                per_device.append(images[places])
        calls.close()
        seen.append(np.stack(per_device))
    chex.assert_shape(seen[0], (12, 2, 4, 8, 8, 1))
    np.testing.assert_array_equal(*seen)
    np.testing.assert_array_equal(seen[0][1, 1], tiny_source.arrays["image"][rows_of(6)[4:8]])


def in_a_folder(source, path):
    """Its images as files, read as they are needed."""
    for i, image in enumerate(source.arrays["image"]):
        (path / str(i % 10)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path / str(i % 10) / f"{i:03}.png")
    options = {"path": str(path), "image_size": 8, "channels": "grey", "split": "train"}
    return folder.load(memory_limit_mb=0, **options), folder.load(memory_limit_mb=100, **options)


def of_array_records(path):
    """The test split of the real MNIST, through grain's random access to TFDS's files."""
    raw = Path(os.environ.get("DDPM_JAX_RAW", "nowhere"))
    if not raw.is_dir():
        pytest.skip("DDPM_JAX_RAW names no folder with the official files of MNIST")
    options = {"split": "test", "data_dir": str(path), "raw_dir": str(raw)}
    return SOURCES["mnist"](memory_limit_mb=0, **options), SOURCES["mnist"](memory_limit_mb=100, **options)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["streamed", "folder", pytest.param("array_record", marks=pytest.mark.full)])
def test_a_streamed_run_is_the_run_in_memory(kind, metrics, tiny_config, tiny_source, tmp_path):
    """Bit for bit, with a stop in between, two averages and two micro-batches."""
    tiny_config.network.name = "simple_unet"
    tiny_config.ema.decays = (0.9, 0.5)
    if kind == "folder":
        stream, memory = in_a_folder(tiny_source, tmp_path / "images")
    elif kind == "array_record":
        stream, memory = of_array_records(tmp_path / "tfds")
    else:
        stream, memory = streamed(tiny_source), tiny_source
    assert isinstance(stream, Streamed) and isinstance(memory, Source)
    task = build(tiny_config, memory.image_shape)
    states = []
    for name, source in (("memory", memory), ("streamed", stream)):
        for steps in (3, 6) if name == "streamed" else (6,):
            tiny_config.train.update(steps=steps, sample_every=0, micro_batches=2)
            run_directory.write(tmp_path / name, tiny_config, memory.image_shape)
            state = resumable.train(tiny_config, tmp_path / name, task, source, jax.devices()[:1])
        states.append(jax.device_get(state))
    chex.assert_trees_all_equal(*states)
    assert metrics(tmp_path / "memory") == metrics(tmp_path / "streamed")
