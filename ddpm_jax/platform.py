"""What must be set before JAX starts. It yields to what the user has set, but for what would change a run's random numbers."""

import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from ddpm_jax.errors import remedy
from ddpm_jax.terminal import say

# jaxlib's default CPU convolutions since 0.10 are the slower ones for few channels: without them a small U-Net trained 1.5
# times as fast (2 cores, AMD EPYC Zen 4, jax 0.10.2). An unknown XLA flag aborts the process, so only versions that were
# tried take it, and only where no GPU or TPU plugin, with an XLA of its own, would read it too.
CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
TRIED_VERSIONS = ("0.10.2", "0.12.0.1")
# Of a program that compiles for minutes XLA says "Very slow compile?", as an error, in the middle of the progress line. What is
# wrong on a CPU is raised as well; what ends the process is still printed. On a GPU the errors tell of its driver, and stay.
FATAL_ONLY = "3"
NUMBERS = {"JAX_THREEFRY_PARTITIONABLE": "true", "JAX_RANDOM_SEED_OFFSET": "0"}  # as `diffusion.keys` has them
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "jax_rocm60_plugin", "libtpu")


def prepare() -> None:
    """Sets the compilation cache and, on CPU, the convolution flag and what XLA may print. Call before the first use of JAX."""
    os.environ.update({name: value for name, value in NUMBERS.items() if name in os.environ})
    caches = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    cache = "" if caches.startswith("~") else str(Path(caches) / "ddpm_jax" / "compiled")  # a user without a home has none
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    on_cpu = not any(importlib.util.find_spec(plugin) for plugin in PLUGINS)
    if on_cpu:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", FATAL_ONLY)
    if "XLA_FLAGS" not in os.environ and on_cpu and importlib.metadata.version("jaxlib") in TRIED_VERSIONS:
        os.environ["XLA_FLAGS"] = CONVOLUTION_FLAG


def check_cache() -> None:
    """Does without the compilation cache, and says so, where its folder cannot be written."""
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if not folder or "://" in folder:
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        say(
            f"warning: the compilation cache {folder} cannot be written ({error}), so that all programs are compiled anew. "
            f"{remedy(error)}, or set JAX_COMPILATION_CACHE_DIR to another folder.",
            file=sys.stderr,
        )
