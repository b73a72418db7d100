"""ddpm_jax: diffusion models in JAX and Flax, small, exact and made to be forked."""

__version__ = "0.1.0"


def load(workdir, step=0):
    """A trained run: `run = ddpm_jax.load("runs/mnist"); images = run.sample(16)`. See `ddpm_jax.runs.run.Run`.

    step: of the checkpoint that is taken; 0: the newest.
    """
    from ddpm_jax import platform

    platform.prepare()
    from ddpm_jax.runs import run

    return run.load(workdir, step)


def __getattr__(name):
    """`from ddpm_jax import presets, variants`, as older config files have it."""
    if name in ("presets", "variants"):
        import importlib

        return importlib.import_module(f"ddpm_jax.config.{name}")
    raise AttributeError(f"module 'ddpm_jax' has no attribute {name!r}")
