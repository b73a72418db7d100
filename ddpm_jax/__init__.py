"""ddpm_jax: diffusion models in JAX and Flax, small, exact and made to be forked."""

__version__ = "0.1.0"


def load(workdir, step=0):
    """A trained run: `run = ddpm_jax.load("runs/mnist"); images = run.sample(16)`. See `ddpm_jax.training.run.Run`.

    step: of the checkpoint that is taken; 0: the newest.
    """
    from ddpm_jax import platform

    platform.prepare()
    from ddpm_jax.training import run

    return run.load(workdir, step)
