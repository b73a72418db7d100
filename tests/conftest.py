"""Eight host devices, one compilation cache for the whole suite, and programs without LLVM's optimisations and fusion emitters.

Tiny networks run no slower for it and compile some ten times as fast (twice for the emitters).
"""

import contextlib
import gc
import importlib.metadata
import os
from pathlib import Path

import numpy as np
import pytest

from ddpm_jax import platform

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
platform.prepare()
FLAGS = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag, as to later ones, aborts
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
gc.set_threshold(100_000, 50, 50)  # traced programs are many small objects that stay


@pytest.fixture
def metrics():
    """A function that gives the logged lines of a run directory without the wall clock."""
    from ddpm_jax.runs import logs

    def read(workdir):
        lines = logs.read(workdir / "metrics.jsonl")
        return [{key: value for key, value in line.items() if "per_second" not in key} for line in lines]

    return read


@pytest.fixture
def parts_of(tmp_path_factory):
    """A function that puts batches of samples, `Sampled`, on the disk as drawing them does."""
    from ddpm_jax.runs.parts import Parts

    def write(*drawn):
        parts = Parts(tmp_path_factory.mktemp("parts"), "name", "as drawn", len(drawn[0].x), sum(len(part.x) for part in drawn))
        for number, part in enumerate(drawn):
            parts.add(number, part)
        return parts

    return write


@pytest.fixture
def tiny_config():
    """The smoke size on made-up 8x8 images, with dropout, so that all the randomness of training is in play."""
    from ddpm_jax import config as configs
    from ddpm_jax.config import variants

    config = variants.apply(configs.base(), "smoke")
    config.network.dropout = 0.1
    return config


@pytest.fixture
def point_config(tiny_config):
    """The same with a perceptron, for points: it compiles in a second."""
    tiny_config.network.name = "mlp"
    tiny_config.sampler.clip = "none"
    return tiny_config


@pytest.fixture
def point_source():
    """48 points of 3 classes."""
    from ddpm_jax.data import Source

    points = np.random.default_rng(0).normal(size=(48, 2)).astype("f")
    return Source({"image": points, "label": np.arange(48, dtype=np.int32) % 3}, 3)


@pytest.fixture
def tiny_source():
    """48 images of noise and their labels."""
    from ddpm_jax.data import Source

    random = np.random.default_rng(0)
    arrays = {"image": random.integers(0, 256, (48, 8, 8, 1), dtype=np.uint8), "label": np.arange(48, dtype=np.int32) % 10}
    return Source(arrays, 10)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Compiled programs stay in memory, some gigabytes of them in the end: from 2 GiB on they are dropped after each file."""
    yield
    with contextlib.suppress(OSError):  # no /proc
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") > 2 * 2**30:
            import jax

            jax.clear_caches()
