"""Where random numbers begin: every key of the package is made here."""

import jax

IMPLEMENTATION = "threefry2x32"  # the only one of JAX's under which a vmap draws what its rows would draw alone
# Settings of JAX besides that change what a key gives: the values under which all runs are trained and sampled.
SETTINGS = {"jax_threefry_partitionable": True, "jax_random_seed_offset": 0}


def key_of(seed: int | jax.Array) -> jax.Array:
    """The key [] of a seed, the same whatever jax_default_prng_impl says: a run's numbers are not the environment's.

    Raises RuntimeError where another setting of JAX would change them.
    """
    for name, value in SETTINGS.items():
        if (found := getattr(jax.config, name, value)) != value:
            raise RuntimeError(
                f"{name} is {found!r}, under which the same seeds give other numbers: leave it {value!r}, and unset the "
                f"variable {name.upper()}."
            )
    return jax.random.key(seed, impl=IMPLEMENTATION)
