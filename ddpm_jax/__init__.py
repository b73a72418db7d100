"""ddpm_jax: diffusion models in JAX and Flax, small, exact and made to be forked."""

__version__ = "0.1.0"
