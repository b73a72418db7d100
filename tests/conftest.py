"""Eight host devices, and one compilation cache for the whole suite."""

import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

from ddpm_jax import platform

platform.prepare()
