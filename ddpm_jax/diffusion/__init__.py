"""The kernel: pure functions of arrays. It imports jax, numpy and chex, and nothing else of the package."""
